//! One flight as a line of the file tells it, and what counts as malformed.

use crate::code::Code;

/// The columns of a flights file, as its header names them.
pub const COLUMNS: [&str; 19] = [
    "year",
    "month",
    "day",
    "dep_time",
    "sched_dep_time",
    "dep_delay",
    "arr_time",
    "sched_arr_time",
    "arr_delay",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "air_time",
    "distance",
    "hour",
    "minute",
    "time_hour",
];

/// What the application needs of a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// Who flies it.
    pub carrier: Code,
    /// The aircraft; not always known.
    pub tail: Option<Code>,
    /// Where it leaves from.
    pub origin: Code,
    /// Where it goes to.
    pub dest: Code,
    /// Minutes that it left late, below 0 when it left early; unknown means that it was cancelled.
    pub dep_delay: Option<i32>,
    /// Miles.
    pub distance: u32,
}

/// A row that is not read, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Malformed {
    /// The line in the file, counted from 1, the header included.
    pub line: u64,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// More bytes than a row can have.
    #[error("longer than {max} bytes")]
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// Bytes that are no text.
    #[error("not UTF-8 text")]
    NotText,
    /// A number of fields that is not the header's.
    #[error("{found} fields where the header has {expected}")]
    Fields {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A field without a value that each flight has.
    #[error("{column} is missing")]
    Missing {
        /// The column.
        column: &'static str,
    },
    /// A field that can't be read.
    #[error("{column} is {found:?}, which is not {expected}")]
    Field {
        /// The column.
        column: &'static str,
        /// What stands there, cut to a readable length.
        found: String,
        /// What should.
        expected: &'static str,
    },
}

/// Where each of [`COLUMNS`] stands in a file; files may order them otherwise and have more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    places: [usize; COLUMNS.len()],
    fields: usize,
}

impl Layout {
    /// Finds the columns in a header line.
    ///
    /// # Errors
    /// The names of the columns that it lacks.
    pub fn parse(header: &str) -> Result<Self, Vec<&'static str>> {
        let names: Vec<&str> = header.split(',').map(|name| unquote(name.trim())).collect();
        let mut places = [0; COLUMNS.len()];
        let mut missing = Vec::new();
        for (place, column) in places.iter_mut().zip(COLUMNS) {
            match names.iter().position(|name| *name == column) {
                Some(found) => *place = found,
                None => missing.push(column),
            }
        }
        if missing.is_empty() { Ok(Self { places, fields: names.len() }) } else { Err(missing) }
    }
}

/// Reads one line, without its line end.
///
/// Each of the columns is checked, also those that the application does without: a line that is wrong in one place is
/// not trusted in another. A hole is `NA` or nothing; a number may end in `.0`, as some tools write columns with holes.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_row(line: &str, layout: &Layout) -> Result<Row, Reason> {
    let found = line.split(',').count();
    if found != layout.fields {
        return Err(Reason::Fields { found, expected: layout.fields });
    }
    let mut fields = [""; COLUMNS.len()];
    for (at, text) in line.split(',').enumerate() {
        for (field, place) in fields.iter_mut().zip(layout.places) {
            if place == at {
                *field = unquote(text.trim());
            }
        }
    }
    let mut row = PartialRow::default();
    for (column, text) in COLUMNS.into_iter().zip(fields) {
        row.take(column, text)?;
    }
    Ok(row.complete())
}

#[derive(Default)]
struct PartialRow {
    carrier: Option<Code>,
    tail: Option<Code>,
    origin: Option<Code>,
    dest: Option<Code>,
    dep_delay: Option<i32>,
    distance: u32,
}

impl PartialRow {
    fn take(&mut self, column: &'static str, text: &str) -> Result<(), Reason> {
        match column {
            "carrier" => self.carrier = Some(known(column, code(column, text)?)?),
            "origin" => self.origin = Some(known(column, code(column, text)?)?),
            "dest" => self.dest = Some(known(column, code(column, text)?)?),
            "tailnum" => self.tail = code(column, text)?,
            "dep_delay" => self.dep_delay = number(column, text)?,
            "distance" => {
                let miles = known(column, number(column, text)?)?;
                self.distance =
                    u32::try_from(miles).map_err(|_| wrong(column, text, "a distance in miles"))?;
            }
            "dep_time" | "arr_time" | "arr_delay" | "air_time" => drop(number(column, text)?),
            "time_hour" => drop(known(column, hole(text))?),
            _ => drop(known(column, number(column, text)?)?),
        }
        Ok(())
    }

    fn complete(self) -> Row {
        let taken = "COLUMNS holds it, and take() gave it a value or an error";
        Row {
            carrier: self.carrier.expect(taken),
            tail: self.tail,
            origin: self.origin.expect(taken),
            dest: self.dest.expect(taken),
            dep_delay: self.dep_delay,
            distance: self.distance,
        }
    }
}

fn known<T>(column: &'static str, value: Option<T>) -> Result<T, Reason> {
    value.ok_or(Reason::Missing { column })
}

fn hole(text: &str) -> Option<&str> {
    (!text.is_empty() && text != "NA").then_some(text)
}

fn code(column: &'static str, text: &str) -> Result<Option<Code>, Reason> {
    let parse = |text: &str| text.parse().map_err(|_| wrong(column, text, "a code"));
    hole(text).map(parse).transpose()
}

fn number(column: &'static str, text: &str) -> Result<Option<i32>, Reason> {
    let parse = |text: &str| {
        let digits = text.strip_suffix(".0").unwrap_or(text);
        digits.parse().map_err(|_| wrong(column, text, "a whole number"))
    };
    hole(text).map(parse).transpose()
}

fn wrong(column: &'static str, text: &str, expected: &'static str) -> Reason {
    Reason::Field { column, found: text.chars().take(40).collect(), expected }
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}
