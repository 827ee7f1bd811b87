//! A record of each handler run, outside of the system: what was computed, as against what was kept of it.
//!
//! The handlers of this application write one record for each run to a file that a kill leaves as it is. Whoever runs
//! the application can tell from the records of several lives which work was done again. Never part of any state.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::OnceLock;
use stead::{Epoch, Index};
use xxhash_rust::xxh3::xxh3_64;

static FILE: OnceLock<File> = OnceLock::new();

/// Bytes of a record.
const RECORD: usize = 64;

/// The services whose runs are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// The feeder.
    Feeder = 1,
    /// Aircraft.
    Aircraft = 2,
    /// Airports.
    Airport = 3,
    /// Carriers.
    Carrier = 4,
}

/// A process, by its service and a hash of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessName {
    /// Its service.
    pub service: Service,
    /// The hash of its key.
    pub key: u64,
}

impl ProcessName {
    /// The name of a process.
    #[must_use]
    pub fn new(service: Service, key: &str) -> Self {
        Self { service, key: xxh3_64(key.as_bytes()) }
    }
}

/// One run of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which process.
    pub process: ProcessName,
    /// What it handled: unique within the process.
    pub cause: u64,
    /// What it had handled before, by its state.
    pub handled: u64,
    /// Where the entry of the run will stand in the shard's log, once it is there.
    pub place: (u64, u64),
    /// The rows that the run fed: from the first up to the second, without it.
    pub rows: (u64, u64),
}

impl Run {
    /// A run of a process.
    #[must_use]
    pub fn of(service: Service, key: &str, cause: u64, handled: u64, place: (Epoch, Index)) -> Self {
        let place = (place.0.0, place.1.0);
        Self { process: ProcessName::new(service, key), cause, handled, place, rows: (0, 0) }
    }

    /// The run with the rows that it feeds.
    #[must_use]
    pub fn with_rows(self, from: u64, to: u64) -> Self {
        Self { rows: (from, to), ..self }
    }

    /// Writes the run to the file, if one is open.
    ///
    /// # Panics
    /// If the file can't be written: a record with gaps proves nothing.
    pub fn record(&self) {
        if let Some(mut file) = FILE.get() {
            file.write_all(&self.to_bytes()).expect("the file of handler runs takes a record");
        }
    }

    fn to_bytes(self) -> [u8; RECORD] {
        let service = self.process.service as u64;
        let fields = [
            service,
            self.process.key,
            self.cause,
            self.handled,
            self.place.0,
            self.place.1,
            self.rows.0,
            self.rows.1,
        ];
        let mut bytes = [0; RECORD];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut fields =
            bytes.chunks_exact(8).map(|field| u64::from_le_bytes(field.try_into().expect("8 bytes")));
        let mut next = || fields.next();
        let service = match next()? {
            1 => Service::Feeder,
            2 => Service::Aircraft,
            3 => Service::Airport,
            4 => Service::Carrier,
            _ => return None,
        };
        Some(Self {
            process: ProcessName { service, key: next()? },
            cause: next()?,
            handled: next()?,
            place: (next()?, next()?),
            rows: (next()?, next()?),
        })
    }
}

/// Records the runs of this operating system process in a file from now on.
///
/// # Errors
/// If the file can't be opened, or another one is open already.
pub fn record_to(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    FILE.set(file)
        .map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "handler runs are recorded already"))
}

/// Reads the runs of a file; a record that a crash of the machine cut off is not one.
///
/// # Errors
/// If the file can't be read, or holds something else.
pub fn read(path: &Path) -> io::Result<Vec<Run>> {
    let bytes = std::fs::read(path)?;
    let runs: Option<Vec<Run>> = bytes.chunks_exact(RECORD).map(Run::from_bytes).collect();
    runs.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a record of handler runs"))
}
