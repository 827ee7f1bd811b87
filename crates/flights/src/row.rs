//! One flight as a line of the file, and the rules for malformed lines.

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

/// The fields of a flight that the application needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The carrier.
    pub carrier: Code,
    /// The tail number of the aircraft, if known.
    pub tail: Option<Code>,
    /// The airport of departure.
    pub origin: Code,
    /// The airport of arrival.
    pub dest: Code,
    /// Delay of the departure in minutes, below 0 if early; `None` if the flight was cancelled.
    pub dep_delay: Option<i32>,
    /// Distance in miles.
    pub distance: u32,
}

/// A malformed row, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Malformed {
    /// The line in the file, counted from 1, the header included.
    pub line: u64,
    /// The reason.
    pub reason: Reason,
}

/// Reasons for which a row is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The line is too long.
    #[error("longer than {max} bytes")]
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// The line is not text.
    #[error("not UTF-8 text")]
    NotText,
    /// The number of fields differs from the header's.
    #[error("{found} fields where the header has {expected}")]
    Fields {
        /// The number of fields found.
        found: usize,
        /// The number of fields expected.
        expected: usize,
    },
    /// A field that every flight has is empty.
    #[error("{column} is missing")]
    Missing {
        /// The column.
        column: &'static str,
    },
    /// A field is invalid.
    #[error("{column} is {found:?}, which is not {expected}")]
    Field {
        /// The column.
        column: &'static str,
        /// The field's text, cut to a readable length.
        found: String,
        /// The kind of value expected.
        expected: &'static str,
    },
}

/// Position of each of [`COLUMNS`] in a file; files may have another order, and more columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    places: [usize; COLUMNS.len()],
    fields: usize,
}

impl Layout {
    /// Finds the columns in a header line.
    ///
    /// # Errors
    /// The names of the missing columns.
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
/// Each column is checked, including those that the application does not use: a line with one invalid field is not
/// trusted in the others. A missing value is `NA` or empty; a number may end in `.0`, as some tools write columns with
/// missing values.
///
/// # Errors
/// The first reason found.
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
