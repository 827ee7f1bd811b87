//! `desk`: passengers check in and get a number. It has nothing to do with the rows: an outside client calls it during
//! the kills and checks the answers.

use serde::{Deserialize, Serialize};
use stead::{Context, Never, Process, QueryContext};

/// A check-in desk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desk {
    /// Number of boarding numbers given so far.
    pub given: u64,
}

/// A request for a boarding number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckIn {
    /// The passenger.
    pub passenger: u64,
}

/// The passenger's boarding number, counted from 1 at each desk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booked {
    /// The number.
    pub number: u64,
}

/// All passengers of a desk and their numbers; more than one number shows that a check-in was applied twice.
pub type Passengers = Vec<(u64, Vec<u64>)>;

impl Process for Desk {
    const SERVICE: &'static str = "desk";
    type Key = String;
    type Request = CheckIn;
    type Reply = Booked;
    type Error = Never;
    type Query = ();
    type Answer = Passengers;

    fn handle(
        &mut self,
        ctx: &mut Context<'_, Self>,
        CheckIn { passenger }: CheckIn,
    ) -> Result<Booked, Never> {
        self.given += 1;
        let cell = passenger.to_be_bytes();
        // Deliberately without a guard against a second check-in: the run shows whether each is applied once.
        let mut numbers: Vec<u64> = ctx.cell(&cell).unwrap_or_default();
        numbers.push(self.given);
        ctx.put_cell(&cell, &numbers);
        Ok(Booked { number: self.given })
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, (): ()) -> Result<Passengers, Never> {
        let cells = ctx.scan_cells::<Vec<u64>>(&[], &[], usize::MAX);
        let passenger =
            |cell: Vec<u8>| cell.try_into().map(u64::from_be_bytes).expect("handle() writes 8 bytes");
        Ok(cells.into_iter().map(|(cell, numbers)| (passenger(cell), numbers)).collect())
    }
}
