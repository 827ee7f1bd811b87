//! Runs in which a request ends the process of each primary that handles it.

use super::World;
use crate::bugs::Bug;
use fastrand::Rng;
use stead_core::entry::{Cause, Entry};
use stead_core::shard::Settings;
use stead_core::shard_replica::Record;

/// Steps of a run.
const STEPS: u32 = 100_000;

/// Whether a record is the entry of a request by its idempotency key.
fn is_entry_of(record: &Record, request: &[u8]) -> bool {
    let Record::Entry(entry) = record else { return false };
    let entry = Entry::decode(&entry.bytes).unwrap();
    matches!(&entry.cause, Cause::Idempotent { key, .. } if **key == *request)
}

impl World {
    /// A request ends each process that handles it, and its client repeats it at the next primary, until it is given up. Primaries are
    /// moved, too. Returns the number of processes that it ended.
    pub(crate) fn poison(seed: u64, bug: Option<Bug>) -> Result<u32, String> {
        let mut world = Self::with(Rng::with_seed(seed), bug, 3, 3, 2);
        world.is_calm = true;
        world.write_anew();
        // Once unsuspected, once in a group, and then alone.
        let max = Settings::default().attempts_max + 2;
        let (number, mut ended) = (world.next_number, 0);
        for _ in 0..STEPS {
            world.step()?;
            ended += u32::from(world.end_handler_of(number));
            if ended > max {
                return Err(format!("[17] a request has ended {ended} processes, and {max} are enough"));
            }
            if world.given_up.contains(&number) {
                return Ok(ended);
            }
            if world.rng.u32(..400) == 0 {
                let to = world.rng.usize(..world.nodes.len());
                world.fail_over(Some(to));
            }
        }
        Err(format!("[17] a request that has ended {ended} processes is not given up"))
    }

    /// Ends the node that has just handled a request, as if its handler had: the entry is neither written nor sent. Returns whether there
    /// is one.
    fn end_handler_of(&mut self, number: u32) -> bool {
        let request = number.to_be_bytes();
        let found = self.nodes.iter().enumerate().find_map(|(at, node)| {
            let has_it = |records: &[Record]| records.iter().any(|record| is_entry_of(record, &request));
            node.written.iter().position(|batch| has_it(&batch.records)).map(|kept| (at, kept))
        });
        let Some((at, kept)) = found else { return false };
        let id = self.nodes[at].id;
        self.wire.retain(|(from, _, _)| *from != id);
        self.end(at, kept);
        true
    }
}
