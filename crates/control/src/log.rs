//! The log on disk: the vote, the entries, and what was purged and truncated, in one file of frames.
//!
//! The file is `log`. Its first frame has all that precedes it; it is written anew, as a whole, once most of it is
//! obsolete. In between frames are appended, each synced before anything is answered. All entries that are not purged are
//! in memory, so that nothing is read from the disk after the start.
//!
//! Truncations, purges and the commit index are not synced at once but written with the next frame: losing them leaves a
//! state that was right before.

use crate::encoding::{EntryCbor, LogIdCbor, VoteCbor, encode};
use crate::fault::{StorageFault, io_fault};
use crate::frame::{self, BLOCK, Link, PAYLOAD_MAX};
use crate::snapshot;
use crate::types::{Entry, LogId, Vote};
use minicbor::{Decode, Encode};
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use stead_core::ids::{ClusterId, Incarnation, NodeId};
use stead_store::data_dir::Meta;
use stead_store::disk::{Disk, DiskFile, Open, parent, read_file, replace_file};

/// Maximum number of bytes of the file. A leader takes no commands long before.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// The file is lengthened by this, so that most appends change no metadata.
const ALLOCATE_BYTES: u64 = 64 << 10;
/// Below this length the file is not written anew.
const REWRITE_BYTES_MIN: u64 = 256 << 10;

/// The node that files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its life since the last restore.
    pub incarnation: Incarnation,
    /// The node.
    pub node: NodeId,
}

impl Identity {
    /// Returns the node that a data directory belongs to.
    #[must_use]
    pub const fn of(meta: &Meta) -> Self {
        Self { cluster: meta.cluster, incarnation: meta.incarnation, node: meta.node }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Record {
    /// The contents before the file; the first record, and no other.
    #[n(0)]
    Base {
        #[n(0)]
        cluster_high: u64,
        #[n(1)]
        cluster_low: u64,
        #[n(2)]
        incarnation: Incarnation,
        #[n(3)]
        node: NodeId,
        #[n(4)]
        vote: Option<VoteCbor>,
        #[n(5)]
        purged: Option<LogIdCbor>,
        #[n(6)]
        committed: Option<LogIdCbor>,
    },
    #[n(1)]
    Vote(#[n(0)] VoteCbor),
    #[n(2)]
    Entry(#[n(0)] EntryCbor),
    /// Entries from this index on are void.
    #[n(3)]
    Truncated(#[n(0)] u64),
    /// Entries up to this one are in a snapshot.
    #[n(4)]
    Purged(#[n(0)] LogIdCbor),
    #[n(5)]
    Committed(#[n(0)] LogIdCbor),
}

/// The contents of the log.
#[derive(Clone, Debug, Default)]
struct Contents {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The entries behind the purged ones, each with its size in bytes.
    entries: VecDeque<(Entry, usize)>,
    /// The index of the next entry.
    next: u64,
    /// The bytes of all entries.
    bytes: usize,
}

impl Contents {
    fn last(&self) -> Option<LogId> {
        self.entries.back().map(|(entry, _)| entry.log_id).or(self.purged)
    }

    fn first(&self) -> u64 {
        self.next - self.entries.len() as u64
    }

    /// Checks that an entry leaves no gap.
    fn check_next(id: LogId, next: u64, last: Option<LogId>) -> Result<(), String> {
        if id.index == next && last.is_none_or(|last| last.leader_id <= id.leader_id) {
            return Ok(());
        }
        let last = last.map_or_else(|| "none".to_owned(), |last| last.to_string());
        Err(format!("entry {id} does not follow the last one, {last}: the next index is {next}"))
    }

    fn push(&mut self, entry: Entry, bytes: usize) -> Result<(), String> {
        Self::check_next(entry.log_id, self.next, self.last())?;
        self.next += 1;
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
        Ok(())
    }

    fn truncate(&mut self, since: u64) {
        while self.next > since
            && let Some((_, bytes)) = self.entries.pop_back()
        {
            self.next -= 1;
            self.bytes -= bytes;
        }
    }

    fn purge(&mut self, upto: LogId) {
        let mut is_other = false;
        while self.first() <= upto.index
            && let Some((entry, bytes)) = self.entries.pop_front()
        {
            self.bytes -= bytes;
            is_other = entry.log_id.index == upto.index && entry.log_id != upto;
        }
        // A snapshot of another history: the entries behind it are of the old one.
        is_other |= self.first() == upto.index + 1
            && self.entries.front().is_some_and(|(entry, _)| entry.log_id.leader_id < upto.leader_id);
        if is_other {
            self.entries.clear();
            (self.bytes, self.next) = (0, upto.index + 1);
        }
        self.next = self.next.max(upto.index + 1);
        self.purged = self.purged.max(Some(upto));
    }

    /// Checks that a vote takes nothing back.
    fn check_vote(&self, vote: Vote) -> Result<(), String> {
        match self.vote {
            Some(held) if !matches!(vote.partial_cmp(&held), Some(Ordering::Equal | Ordering::Greater)) => {
                Err(format!("the vote {vote} is below {held}"))
            }
            _ => Ok(()),
        }
    }

    fn redo(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Base { .. } => return Err("a file begins within a file".to_owned()),
            Record::Vote(vote) => {
                self.check_vote(vote.into())?;
                self.vote = Some(vote.into());
            }
            Record::Entry(entry) => {
                let bytes = encode(&entry).len();
                self.push(entry.into(), bytes)?;
            }
            Record::Truncated(since) => self.truncate(since),
            Record::Purged(upto) if !upto.is_possible() => return Err(format!("{upto:?} is over the limit")),
            Record::Purged(upto) => self.purge(upto.into()),
            Record::Committed(id) => self.committed = self.committed.max(Some(id.into())),
        }
        Ok(())
    }
}

/// The vote and the log of a node.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    path: String,
    identity: Identity,
    file: Box<dyn DiskFile>,
    /// The place of the next frame.
    end: u64,
    link: Link,
    /// The length of the file.
    allocated: u64,
    contents: Contents,
    /// Records for the next frame.
    pending: Vec<Record>,
    fatal: bool,
}

impl Log {
    /// Opens the log in `dir`, or creates it if it is missing and `may_create`.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        identity: Identity,
        may_create: bool,
    ) -> Result<Self, StorageFault> {
        let path = format!("{dir}/log");
        let bytes = match read_file(&*disk, &path, FILE_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !may_create {
                    return Err(StorageFault::Lost { path });
                }
                return Self::create(disk, path, identity);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(StorageFault::Damaged { path, offset: 0, reason: error.to_string() });
            }
            Err(error) => return Err(io_fault("read", &path)(error)),
        };
        let (contents, end, link) = read(&bytes, &path, identity)?;
        let file = disk.open(&path, Open::Existing).map_err(io_fault("open", &path))?;
        let mut allocated = bytes.len() as u64;
        let mark = frame::mark(link);
        let behind = bytes[end..].strip_prefix(&mark[..]).unwrap_or(&bytes[end..]);
        let is_marked = behind.len() < bytes.len() - end;
        if behind.iter().any(|byte| *byte != 0) {
            // The tail of a write that was not synced.
            file.truncate(end as u64).map_err(io_fault("cut", &path))?;
            allocated = end as u64;
        }
        // A process that was killed may have left all of it in the system's cache.
        file.sync_data().map_err(io_fault("sync", &path))?;
        disk.sync_dir(dir).map_err(io_fault("sync", dir))?;
        let mut log = Self {
            disk,
            path,
            identity,
            file,
            end: end as u64,
            link,
            allocated,
            contents,
            pending: Vec::new(),
            fatal: false,
        };
        if !is_marked || log.allocated == log.end {
            match log.make_room(log.end + BLOCK as u64) {
                // The first write waits for room.
                Err(fault) if !fault.is_full() => return Err(fault),
                _ => log.mark()?,
            }
        }
        Ok(log)
    }

    fn create(disk: Arc<dyn Disk>, path: String, identity: Identity) -> Result<Self, StorageFault> {
        let dir = parent(&path);
        disk.create_dir(dir).map_err(io_fault("create", dir))?;
        disk.sync_dir(parent(dir)).map_err(io_fault("sync", parent(dir)))?;
        if disk.len(&snapshot::path(dir)).map_err(io_fault("look for", dir))?.is_some() {
            return Err(StorageFault::Lost { path });
        }
        let contents = Contents::default();
        let (file, end, link) = write_anew(&*disk, &path, identity, &contents, 1)?;
        Ok(Self {
            disk,
            path,
            identity,
            file,
            end,
            link,
            allocated: end,
            contents,
            pending: Vec::new(),
            fatal: false,
        })
    }

    /// Lets a log without entries go on at another index: openraft's suite appends to the middle of nothing.
    #[cfg(test)]
    pub(crate) fn begin_at(&mut self, index: u64) {
        if self.contents.entries.is_empty() && self.contents.next != index {
            (self.contents.next, self.contents.purged) = (index, None);
        }
    }

    /// Returns the number of times that the file was written as a whole.
    #[cfg(test)]
    pub(crate) fn generation(&self) -> u64 {
        self.link.generation
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) const fn node(&self) -> NodeId {
        self.identity.node
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.contents.vote
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        self.contents.committed
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.contents.purged
    }

    /// Returns the last entry, or the last purged one if there is none.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.contents.last()
    }

    /// Returns the bytes of the entries that are not purged.
    pub(crate) fn bytes(&self) -> usize {
        self.contents.bytes
    }

    /// Returns entries from an index on, up to `end` and about `bytes_max` bytes, but one at least if there is one.
    pub(crate) fn entries(&self, from: u64, end: u64, bytes_max: usize) -> Vec<Entry> {
        let first = self.contents.first();
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut taken = 0_usize;
        let entries = self.contents.entries.iter().skip(skip).take_while(|(entry, bytes)| {
            let is_first = taken == 0;
            taken += bytes;
            entry.log_id.index < end && (is_first || taken <= bytes_max)
        });
        entries.map(|(entry, _)| entry.clone()).collect()
    }

    /// Stores a vote, and returns once it is durable.
    ///
    /// After an error for want of room nothing has changed.
    pub(crate) fn save_vote(&mut self, vote: Vote) -> Result<(), StorageFault> {
        self.contents.check_vote(vote).map_err(StorageFault::Refused)?;
        self.write(vec![Record::Vote(vote.into())])?;
        self.contents.vote = Some(vote);
        self.shorten()
    }

    /// Appends entries, and returns once they are durable. They have to follow each other and the last one.
    ///
    /// After an error for want of room nothing has changed.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<(), StorageFault> {
        let mut last = self.contents.last();
        for (entry, next) in entries.iter().zip(self.contents.next..) {
            Contents::check_next(entry.log_id, next, last).map_err(StorageFault::Refused)?;
            last = Some(entry.log_id);
        }
        let encoded = entries.iter().map(|entry| EntryCbor::from(entry.clone()));
        let records: Vec<_> = encoded.map(Record::Entry).collect();
        let sizes: Vec<_> = records.iter().map(|record| encode(record).len()).collect();
        self.write(records)?;
        for (entry, bytes) in entries.iter().zip(sizes) {
            self.contents.push(entry.clone(), bytes).expect("checked before it was written");
        }
        self.shorten()
    }

    pub(crate) fn truncate(&mut self, since: u64) {
        self.contents.truncate(since);
        self.pending.push(Record::Truncated(since));
    }

    pub(crate) fn note_committed(&mut self, committed: LogId) {
        self.contents.committed = self.contents.committed.max(Some(committed));
        self.pending.retain(|record| !matches!(record, Record::Committed(_)));
        self.pending.push(Record::Committed(committed.into()));
    }

    /// Forgets the entries up to one that a durable snapshot includes.
    pub(crate) fn purge(&mut self, upto: LogId) -> Result<(), StorageFault> {
        self.contents.purge(upto);
        self.pending.push(Record::Purged(upto.into()));
        self.shorten()
    }

    /// Writes the file anew if most of it is obsolete: purged entries, or the votes of many elections.
    fn shorten(&mut self) -> Result<(), StorageFault> {
        if self.end < REWRITE_BYTES_MIN || self.end < 2 * self.contents.bytes as u64 {
            return Ok(());
        }
        match self.rewrite() {
            // Later, when there is room: until then the file is only longer than it has to be.
            Err(fault) if fault.is_full() => Ok(()),
            done => done,
        }
    }

    fn rewrite(&mut self) -> Result<(), StorageFault> {
        self.check()?;
        let generation = self.link.generation + 1;
        match write_anew(&*self.disk, &self.path, self.identity, &self.contents, generation) {
            Ok((file, end, link)) => {
                (self.file, self.end, self.allocated, self.link) = (file, end, end, link);
                self.pending.clear();
                self.mark()
            }
            Err(fault) => {
                self.fatal = !fault.is_full();
                Err(fault)
            }
        }
    }

    fn check(&self) -> Result<(), StorageFault> {
        if self.fatal { Err(StorageFault::Fatal) } else { Ok(()) }
    }

    /// Writes a frame with what is pending and these records, and syncs it.
    fn write(&mut self, records: Vec<Record>) -> Result<(), StorageFault> {
        self.check()?;
        let mut all = self.pending.clone();
        all.extend(records);
        let payload = encode(&all);
        if payload.len() > PAYLOAD_MAX {
            return Err(StorageFault::TooLarge { what: "a frame", bytes: payload.len(), max: PAYLOAD_MAX });
        }
        let (bytes, checksum) = frame::frame(&payload, self.link);
        match self.write_synced(&bytes) {
            Ok(()) => {}
            Err(fault) if fault.is_full() => return Err(fault),
            Err(fault) => {
                self.fatal = true;
                return Err(fault);
            }
        }
        self.pending.clear();
        self.end += bytes.len() as u64;
        self.link = Link { number: self.link.number + 1, previous: checksum, ..self.link };
        self.mark()
    }

    fn write_synced(&mut self, bytes: &[u8]) -> Result<(), StorageFault> {
        // Room for the mark, too.
        self.make_room(self.end + (bytes.len() + BLOCK) as u64)?;
        self.file.write_at(bytes, self.end).map_err(io_fault("write", &self.path))?;
        self.file.sync_data().map_err(|source| {
            // Not for want of room: it is unknown what the disk holds.
            io_fault("sync", &self.path)(io::Error::other(source))
        })
    }

    /// Lengthens the file to at least `needed` bytes.
    fn make_room(&mut self, needed: u64) -> Result<(), StorageFault> {
        if needed > self.allocated {
            let len = needed.next_multiple_of(ALLOCATE_BYTES);
            self.file.allocate(len).map_err(io_fault("lengthen", &self.path))?;
            self.allocated = len;
        }
        Ok(())
    }

    /// Marks the last frame as synced.
    fn mark(&mut self) -> Result<(), StorageFault> {
        if self.end + BLOCK as u64 > self.allocated {
            return Ok(());
        }
        match self.file.write_at(&frame::mark(self.link), self.end) {
            Err(error) if !stead_store::disk::is_full(&error) => {
                self.fatal = true;
                Err(io_fault("mark", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Replaces the file by one frame with all contents, and returns it, its end, and the next link.
fn write_anew(
    disk: &dyn Disk,
    path: &str,
    identity: Identity,
    contents: &Contents,
    generation: u64,
) -> Result<(Box<dyn DiskFile>, u64, Link), StorageFault> {
    let Identity { cluster, incarnation, node } = identity;
    let mut records = vec![Record::Base {
        cluster_high: (cluster.0 >> 64) as u64,
        cluster_low: cluster.0 as u64,
        incarnation,
        node,
        vote: contents.vote.map(Into::into),
        purged: contents.purged.map(Into::into),
        committed: contents.committed.map(Into::into),
    }];
    records.extend(contents.entries.iter().map(|(entry, _)| Record::Entry(entry.clone().into())));
    let payload = encode(&records);
    if payload.len() > PAYLOAD_MAX {
        return Err(StorageFault::TooLarge { what: "the log", bytes: payload.len(), max: PAYLOAD_MAX });
    }
    let link = Link { number: 0, previous: 0, generation };
    let (bytes, checksum) = frame::frame(&payload, link);
    replace_file(disk, path, &bytes).map_err(io_fault("replace", path))?;
    let file = disk.open(path, Open::Existing).map_err(io_fault("open", path))?;
    Ok((file, bytes.len() as u64, Link { number: 1, previous: checksum, generation }))
}

/// Reads a file, and returns its contents, the end of its last frame, and the next link.
fn read(bytes: &[u8], path: &str, identity: Identity) -> Result<(Contents, usize, Link), StorageFault> {
    let damaged = |offset: usize, reason: String| StorageFault::Damaged {
        path: path.to_owned(),
        offset: offset as u64,
        reason,
    };
    if let Some(found) = frame::foreign_version(bytes, b"SCF") {
        return Err(StorageFault::Version { path: path.to_owned(), found });
    }
    let mut contents = Contents::default();
    let mut link = Link { number: 0, previous: 0, generation: 0 };
    let mut end = 0;
    let reason = loop {
        let found = match frame::parse(&bytes[end..]) {
            Ok(found) if found.is_mark => break "there is no frame",
            Ok(found) => found,
            Err(reason) => break reason,
        };
        if link.number == 0 {
            link.generation = found.link.generation;
        }
        if found.link != link {
            break "a frame does not follow the one before";
        }
        let undecodable = |error: minicbor::decode::Error| damaged(end, format!("its records: {error}"));
        let mut records = found.records::<Vec<Record>>().map_err(undecodable)?.into_iter();
        if link.number == 0 {
            let Some(base) = records.next() else { return Err(damaged(end, "it is empty".to_owned())) };
            contents = begin(base, identity, path).map_err(|fault| match fault {
                Ok(fault) => fault,
                Err(reason) => damaged(end, reason),
            })?;
        }
        for record in records {
            contents.redo(record).map_err(|reason| damaged(end, reason))?;
        }
        end += found.span;
        link = Link { number: link.number + 1, previous: found.checksum, ..link };
    };
    // The first frame is synced before it gets its name. Others are synced before anything comes after them.
    let mut later = (end..bytes.len()).step_by(BLOCK).filter_map(|at| frame::parse(&bytes[at..]).ok());
    let is_damage =
        later.any(|found| found.link.generation == link.generation && found.link.number >= link.number);
    if link.number == 0 || is_damage {
        return Err(damaged(end, reason.to_owned()));
    }
    Ok((contents, end, link))
}

/// Returns the contents that precede a file.
fn begin(base: Record, identity: Identity, path: &str) -> Result<Contents, Result<StorageFault, String>> {
    let Record::Base { cluster_high, cluster_low, incarnation, node, vote, purged, committed } = base else {
        return Err(Err("it does not say where it begins".to_owned()));
    };
    let cluster = ClusterId(u128::from(cluster_high) << 64 | u128::from(cluster_low));
    if (Identity { cluster, incarnation, node }) != identity {
        return Err(Ok(StorageFault::Foreign { path: path.to_owned(), node, cluster, incarnation }));
    }
    if purged.is_some_and(|purged| !purged.is_possible()) {
        return Err(Err(format!("{purged:?} is over the limit")));
    }
    let purged: Option<LogId> = purged.map(Into::into);
    Ok(Contents {
        vote: vote.map(Into::into),
        committed: committed.map(Into::into),
        purged,
        next: purged.map_or(0, |purged| purged.index + 1),
        ..Contents::default()
    })
}
