//! Reads a flights file, plain or gzip, line by line: a damaged line affects no other line.

use crate::code::Code;
use crate::row::{Layout, Malformed, Reason, Row, parse_row};
use flate2::bufread::MultiGzDecoder;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// January 2013 from New York City, built in: 27,004 flights.
pub const BUNDLED: &[u8] = include_bytes!("../../../data/flights-2013-01.csv.gz");

/// Maximum number of rows of a file; a row takes 84 bytes of memory.
pub const ROWS_MAX: usize = 5_000_000;

/// Maximum number of bytes of a line.
pub const LINE_MAX: usize = 4096;

/// Handling of malformed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnMalformed {
    /// Refuse the file.
    #[default]
    Refuse,
    /// Skip the row.
    Skip,
}

/// Errors of reading a flights file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It cannot be read to its end.
    #[error("reading failed after line {line}: {source}")]
    Io {
        /// The last line that was read.
        line: u64,
        /// The cause.
        source: io::Error,
    },
    /// The first line does not name the columns.
    #[error("line 1 is not the header of a flights file: it lacks {}", missing.join(", "))]
    Header {
        /// The missing columns.
        missing: Vec<&'static str>,
    },
    /// A row is malformed, and malformed rows are refused.
    #[error("{0}; skip such rows or correct the file")]
    Malformed(#[from] Malformed),
    /// The file has too many rows.
    #[error("the file has more than {max} rows; split it")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// The file has no rows.
    #[error("the file has no rows")]
    Empty,
}

/// A flights file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flights {
    /// Its rows, in order.
    pub rows: Vec<Row>,
    /// The rows that were skipped.
    pub malformed: Vec<Malformed>,
}

impl Flights {
    /// Returns the built-in flights.
    #[must_use]
    pub fn bundled() -> Self {
        Self::read(BUNDLED, OnMalformed::Refuse).expect("the bundled file is whole: a test reads it")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ReadError`], with the place and the reason.
    pub fn open(path: &Path, on_malformed: OnMalformed) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Open { path: path.to_owned(), source })?;
        Self::read(file, on_malformed)
    }

    /// Reads a file's bytes, plain or gzip.
    ///
    /// # Errors
    /// [`ReadError`], with the place and the reason.
    pub fn read(bytes: impl Read, on_malformed: OnMalformed) -> Result<Self, ReadError> {
        let mut bytes = BufReader::with_capacity(1 << 16, bytes);
        let head = bytes.fill_buf().map_err(|source| ReadError::Io { line: 0, source })?;
        if head.starts_with(&[0x1f, 0x8b]) {
            read_lines(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(bytes)), on_malformed)
        } else {
            read_lines(bytes, on_malformed)
        }
    }

    /// Returns the known tail numbers.
    pub(crate) fn tails(&self) -> BTreeSet<Code> {
        self.rows.iter().filter_map(|row| row.tail).collect()
    }

    /// Returns a fingerprint of these rows, which only equal rows share.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        let mut hash = Xxh3::new();
        for row in &self.rows {
            for code in [Some(row.carrier), row.tail, Some(row.origin), Some(row.dest)] {
                hash.update(code.as_ref().map_or("", |code| code.as_str()).as_bytes());
                hash.update(b",");
            }
            hash.update(&row.dep_delay.map_or(i64::MAX, i64::from).to_le_bytes());
            hash.update(&row.distance.to_le_bytes());
        }
        hash.digest128()
    }
}

fn read_lines(mut input: impl BufRead, on_malformed: OnMalformed) -> Result<Flights, ReadError> {
    let mut flights = Flights { rows: Vec::new(), malformed: Vec::new() };
    let mut layout = None;
    let mut buffer = Vec::new();
    let mut line = 0;
    loop {
        buffer.clear();
        let more = read_line(&mut input, &mut buffer).map_err(|source| ReadError::Io { line, source })?;
        if !more {
            break;
        }
        line += 1;
        let text = text_of(&buffer);
        let Some(layout) = &layout else {
            let header = text.unwrap_or_default().trim_start_matches('\u{feff}');
            layout = Some(Layout::parse(header).map_err(|missing| ReadError::Header { missing })?);
            continue;
        };
        match text.and_then(|text| if text.is_empty() { Ok(None) } else { parse_row(text, layout).map(Some) })
        {
            Ok(None) => {}
            Ok(Some(_)) if flights.rows.len() == ROWS_MAX => {
                return Err(ReadError::TooMany { max: ROWS_MAX });
            }
            Ok(Some(row)) => flights.rows.push(row),
            Err(reason) => {
                let malformed = Malformed { line, reason };
                match on_malformed {
                    OnMalformed::Refuse => return Err(malformed.into()),
                    OnMalformed::Skip => flights.malformed.push(malformed),
                }
            }
        }
    }
    if layout.is_none() {
        return Err(ReadError::Header { missing: crate::row::COLUMNS.to_vec() });
    }
    if flights.rows.is_empty() { Err(ReadError::Empty) } else { Ok(flights) }
}

fn text_of(line: &[u8]) -> Result<&str, Reason> {
    if line.len() > LINE_MAX {
        return Err(Reason::TooLong { max: LINE_MAX });
    }
    let text = std::str::from_utf8(line).map_err(|_| Reason::NotText)?;
    Ok(text.trim_end_matches(['\n', '\r']))
}

/// Reads to the end of a line, but keeps only enough of it to show that it is too long.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut some = false;
    loop {
        let bytes = match input.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.is_empty() {
            return Ok(some);
        }
        some = true;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        let room = (LINE_MAX + 1).saturating_sub(line.len());
        line.extend_from_slice(&bytes[..taken.min(room)]);
        input.consume(taken);
        if end.is_some() {
            return Ok(true);
        }
    }
}
