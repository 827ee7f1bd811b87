//! A record of each handler run, outside of the system: all that was computed, as opposed to what was committed.
//!
//! The handlers of this application write one record for each run to a file that survives a kill. The records of
//! several lives show which work was repeated. They are not part of any state.

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
    /// Names a process.
    #[must_use]
    pub fn new(service: Service, key: &str) -> Self {
        Self { service, key: xxh3_64(key.as_bytes()) }
    }
}

/// One run of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The process.
    pub process: ProcessName,
    /// The handled message or request: unique within the process.
    pub cause: u64,
    /// Number of causes that the process had handled before, according to its state.
    pub handled: u64,
    /// Epoch and index of the run's entry in the shard's log.
    pub place: (u64, u64),
    /// The rows that the run fed: from the first up to the second, exclusive.
    pub rows: (u64, u64),
}

impl Run {
    /// Returns a run of a process.
    #[must_use]
    pub fn of(service: Service, key: &str, cause: u64, handled: u64, place: (Epoch, Index)) -> Self {
        let place = (place.0.0, place.1.0);
        Self { process: ProcessName::new(service, key), cause, handled, place, rows: (0, 0) }
    }

    /// Returns the run with the rows that it feeds.
    #[must_use]
    pub fn with_rows(self, from: u64, to: u64) -> Self {
        Self { rows: (from, to), ..self }
    }

    /// Writes the run to the file, if one is open.
    ///
    /// # Panics
    /// If the file cannot be written: records with gaps prove nothing.
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
/// If the file cannot be opened, or runs are being recorded already.
pub fn record_to(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    FILE.set(file)
        .map_err(|_| io::Error::new(io::ErrorKind::AlreadyExists, "handler runs are recorded already"))
}

/// Reads the runs of a file; a record that a crash of the machine cut off is ignored.
///
/// # Errors
/// If the file cannot be read, or is not such a file.
pub fn read(path: &Path) -> io::Result<Vec<Run>> {
    let bytes = std::fs::read(path)?;
    let runs: Option<Vec<Run>> = bytes.chunks_exact(RECORD).map(Run::from_bytes).collect();
    runs.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a record of handler runs"))
}
