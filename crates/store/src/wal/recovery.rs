//! Reads a log back, and distinguishes the unsynced tail of a crash from corruption.
//!
//! The batches of a log form a chain: consecutive numbers, and in each the checksum of the previous one. Reading
//! follows the chain to the first place where it breaks, and then looks for whole batches up to the end of the last
//! segment. If any batch records that a batch beyond the break had been synced, the break is corruption. Otherwise
//! nothing from the break on had been synced, so no promise depends on it, and it is cut.
//!
//! Scanning changes nothing. Repairing then makes the kept end durable and wipes what was cut, before anything new is
//! written: a crash in between leads to the same result.

use super::error::{Damage, WalError};
use super::frame::{self, BLOCK, FORMAT, Frame};
use super::numbers::u64_at;
use super::options::{SEGMENT_MAX, SEGMENT_MIN, WalOptions};
use super::promises::Promises;
use super::record::{Item, Stored, Unreadable, decode_table, split};
use super::segment::{FileKind, Free, check_header, file_kind, free_path, log_path};
use super::spans::ShardSpans;
use super::window::Window;
use crate::disk::{Disk, DiskFile, Open, read_exact_at};
use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::ops::ControlFlow;

/// The report of opening a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Number of segments, prepared ones included.
    pub segments: u64,
    /// Number of batches, those that hold only a sync mark included.
    pub batches: u64,
    /// Number of records.
    pub records: u64,
    /// Bytes of the batches on disk.
    pub bytes: u64,
    /// Number of whole batches at the end that no sync mark covered. They are kept, because they may have been synced.
    pub unsynced: u64,
    /// The unsynced tail of a crash that was wiped.
    pub cut: Option<Cut>,
}

/// The place at which the unsynced tail of a log was cut, and the damage there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment's file.
    pub path: String,
    /// The first byte that was cut.
    pub offset: u64,
    /// The damage.
    pub damage: Damage,
}

/// A segment as found. Its file is opened when it is read, and closed after that: a log may have more segments than a
/// process may have open files.
pub(crate) struct Found {
    pub(crate) id: u64,
    pub(crate) bytes: u64,
    /// 0 until its header was read.
    pub(crate) version: u32,
    /// The last batch of the chain in it; 0 if there is none.
    pub(crate) last: u64,
    pub(crate) spans: ShardSpans,
}

/// A position in a log: the segment by its place in [`Scan::segments`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    segment: usize,
    offset: usize,
}

/// A whole batch of the chain that no sync mark covers.
struct Unsynced {
    number: u64,
    place: Place,
    span: usize,
}

/// The results of reading a log.
#[derive(Default)]
pub(crate) struct Scan {
    pub(crate) segments: Vec<Found>,
    /// The last batch of the chain; 0 if there is none.
    pub(crate) number: u64,
    pub(crate) checksum: u32,
    /// The segment of the last batch, and the end of that batch.
    pub(crate) tail: usize,
    pub(crate) at: u64,
    /// The position of the last batch.
    pub(crate) last_at: u64,
    pub(crate) oldest: u64,
    /// The promises of the table in the first segment of version 2, and the later ones.
    pub(crate) promises: Promises,
    /// Whether such a table was found.
    has_table: bool,
    free: Vec<u64>,
    /// The segments of `free` that were kept.
    pub(crate) reusable: Vec<Free>,
    /// Segments before a gap, unread: none of them is needed.
    pub(crate) outdated: Vec<u64>,
    pub(crate) opened: Opened,
    temporary: Vec<String>,
    unsynced: VecDeque<Unsynced>,
    /// Blocks after the break that begin like a batch of their segment.
    stray: Vec<Place>,
}

/// A reason for which a batch cannot be taken although its checksum is right.
enum Flaw {
    Damage(Damage),
    /// A record is of an unknown kind that must be known.
    Kind(u8),
}

impl From<Unreadable> for Flaw {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Malformed => Self::Damage(Damage::Records),
            Unreadable::Kind(kind) => Self::Kind(kind),
        }
    }
}

/// The end of the chain, and its reason.
struct Break {
    place: Place,
    damage: Damage,
}

pub(crate) type Visitor<'a> =
    dyn FnMut(Item<'_>) -> Result<ControlFlow<()>, Box<dyn Error + Send + Sync>> + 'a;

struct Scanner<'a, 'v> {
    options: &'a WalOptions,
    scan: Scan,
    /// The highest sync mark in any whole batch.
    mark: u64,
    /// The first break of the chain that the next segment does not explain.
    broken: Option<Break>,
    /// Whether a whole batch follows a break.
    leapt: bool,
    visit: &'a mut Visitor<'v>,
    /// The visitor's error: it sees no more records.
    refused: Option<Box<dyn Error + Send + Sync>>,
    /// Whether the visitor wants no more records.
    is_done: bool,
}

/// Reads the log and passes its records to `visit`, until that breaks; changes nothing.
pub(crate) fn scan(disk: &dyn Disk, options: &WalOptions, visit: &mut Visitor<'_>) -> Result<Scan, WalError> {
    let mut scanner = Scanner {
        options,
        scan: Scan::default(),
        mark: 0,
        broken: None,
        leapt: false,
        visit,
        refused: None,
        is_done: false,
    };
    scanner.find_files(disk)?;
    let mut window = Window::default();
    let mut next: Option<Box<dyn DiskFile>> = None;
    for at in 0..scanner.scan.segments.len() {
        let file = match next.take() {
            Some(file) => file,
            None => scanner.open(disk, at)?,
        };
        if at + 1 < scanner.scan.segments.len() {
            let ahead = scanner.open(disk, at + 1)?;
            ahead.read_ahead();
            next = Some(ahead);
        }
        scanner.read_segment(at, &*file, &mut window)?;
        if scanner.is_done {
            return Ok(scanner.scan);
        }
    }
    scanner.finish()
}

/// Passes an item to the visitor; returns whether it wants more.
fn show(
    item: Item<'_>,
    visit: &mut Visitor<'_>,
    refused: &mut Option<Box<dyn Error + Send + Sync>>,
    is_done: &mut bool,
) -> bool {
    match visit(item) {
        Ok(ControlFlow::Continue(())) => return true,
        Ok(ControlFlow::Break(())) => *is_done = true,
        Err(error) => *refused = Some(error),
    }
    false
}

impl Scanner<'_, '_> {
    fn path(&self, segment: usize) -> String {
        log_path(&self.options.dir, self.scan.segments[segment].id)
    }

    fn corrupt(&self, place: Place, damage: Damage) -> WalError {
        WalError::Corrupt { path: self.path(place.segment), offset: place.offset as u64, damage }
    }

    fn find_files(&mut self, disk: &dyn Disk) -> Result<(), WalError> {
        let dir = &self.options.dir;
        let names = match disk.list(dir) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(WalError::Io { action: "list", path: dir.clone(), source }),
        };
        let mut logs = Vec::new();
        for name in names {
            match file_kind(&name) {
                Some(FileKind::Log(id)) => logs.push(id),
                Some(FileKind::Free(id)) => self.scan.free.push(id),
                Some(FileKind::Temporary) => self.scan.temporary.push(format!("{dir}/{name}")),
                None => {}
            }
        }
        logs.sort_unstable();
        // Several trimmed segments are deleted in any order, and a power cut may undo some of these deletions. So
        // either the segments before a gap are outdated, or the missing ones are a loss: the first segment after the
        // gap decides that.
        let gap = logs.windows(2).rposition(|pair| pair[1] != pair[0] + 1);
        let live = logs.split_off(gap.map_or(0, |gap| gap + 1));
        self.scan.outdated = logs;
        for id in live {
            let path = log_path(dir, id);
            let len = disk.len(&path).and_then(|len| len.ok_or_else(|| io::ErrorKind::NotFound.into()));
            let bytes = len.map_err(WalError::io("look at", &path))?;
            self.scan.segments.push(Found { id, bytes, version: 0, last: 0, spans: ShardSpans::default() });
        }
        Ok(())
    }

    fn open(&self, disk: &dyn Disk, segment: usize) -> Result<Box<dyn DiskFile>, WalError> {
        let path = self.path(segment);
        disk.open(&path, Open::Read).map_err(WalError::io("open", &path))
    }

    fn read_segment(
        &mut self,
        segment: usize,
        file: &dyn DiskFile,
        window: &mut Window,
    ) -> Result<(), WalError> {
        let Found { id, bytes, .. } = self.scan.segments[segment];
        let path = self.path(segment);
        let start = Place { segment, offset: 0 };
        // The limit stands before the allocation: the length is the file system's word.
        if id == 0 || id == u64::MAX || bytes > SEGMENT_MAX {
            return Err(self.corrupt(start, Damage::Range));
        }
        let end = usize::try_from(bytes).map_err(|_| self.corrupt(start, Damage::Range))?;
        window.clear();
        let head = window.header(file, end).map_err(WalError::io("read", &path))?;
        let version = check_header(head, &path, id, self.options.log_id, bytes)?;
        self.scan.segments[segment].version = version;
        if bytes < SEGMENT_MIN || !bytes.is_multiple_of(BLOCK as u64) {
            return Err(self.corrupt(start, Damage::Range));
        }

        let mut stop: Option<Break> = None;
        let mut offset = BLOCK;
        while offset < end && !self.is_done {
            let place = Place { segment, offset };
            let head = window.batch(file, offset, end, (id, version));
            let head = head.map_err(WalError::io("read", &path))?;
            match frame::parse(head, end - offset, id, version, self.options.log_id) {
                Ok(found) => {
                    self.mark = self.mark.max(found.header.synced);
                    // Only the first batch of a segment can explain a break in the previous one.
                    let may_follow =
                        stop.is_none() && (self.broken.is_none() || offset == BLOCK && !self.leapt);
                    if may_follow && self.follows(&found, id) {
                        self.broken = None;
                        self.scan.stray.clear();
                        self.take(&found, place)?;
                    } else {
                        self.leapt = true;
                        self.scan.stray.push(place);
                        let wanted = (self.scan.number > 0).then_some(self.scan.number + 1);
                        let damage = Damage::Order { found: found.header.number, wanted };
                        stop.get_or_insert(Break { place, damage });
                    }
                    offset += found.span;
                }
                Err(damage) => {
                    if damage != Damage::NoBatch && u64_at(head, 16) == id {
                        self.scan.stray.push(place);
                    }
                    let is_other = damage == Damage::NoBatch
                        && window
                            .is_of_other_version(file, offset, end, (id, version), self.options.log_id)
                            .map_err(WalError::io("read", &path))?;
                    // As a segment without batches it would lose its contents.
                    if is_other {
                        return Err(self.corrupt(start, Damage::SegmentHeader));
                    }
                    stop.get_or_insert(Break { place, damage });
                    offset += BLOCK;
                }
            }
        }
        self.stopped(stop, segment);
        Ok(())
    }

    /// Notes the break of the chain in `segment`, unless it broke before. A break that looks like the mere end of the
    /// previous segment is replaced by damage at the start of this one, which is then the likelier cause.
    fn stopped(&mut self, stop: Option<Break>, segment: usize) {
        let has_strays = |segment: usize| self.scan.stray.iter().any(|stray| stray.segment == segment);
        let gives_way = match &self.broken {
            None => true,
            Some(before) => {
                before.place.segment + 1 == segment
                    && matches!(before.damage, Damage::NoBatch | Damage::Stale { .. })
                    && !has_strays(before.place.segment)
                    && has_strays(segment)
                    && stop.as_ref().is_some_and(|stop| !matches!(stop.damage, Damage::Order { .. }))
            }
        };
        if gives_way {
            self.broken = stop;
        }
    }

    fn follows(&self, found: &Frame<'_>, segment: u64) -> bool {
        let header = &found.header;
        if self.scan.number == 0 {
            // After trimming the chain begins anywhere; a log's very first batch follows nothing.
            let first = segment == self.scan.segments[0].id;
            return first && header.number > 0 && (segment > 1 || header.number == 1 && header.previous == 0);
        }
        header.number == self.scan.number + 1 && header.previous == self.scan.checksum
    }

    fn take(&mut self, found: &Frame<'_>, place: Place) -> Result<(), WalError> {
        let header = &found.header;
        // No valid log records this; followed, it would release needed segments.
        if header.oldest > header.segment || header.synced >= header.number || header.number == u64::MAX {
            return Err(self.corrupt(place, Damage::Range));
        }
        let (records, tables) = match self.take_records(found, place) {
            Ok(counts) => counts,
            Err(Flaw::Damage(damage)) => return Err(self.corrupt(place, damage)),
            Err(Flaw::Kind(kind)) => {
                let (path, offset) = (self.path(place.segment), place.offset as u64);
                return Err(WalError::Kind { path, offset, kind });
            }
        };
        let scan = &mut self.scan;
        scan.number = found.header.number;
        scan.checksum = found.checksum;
        scan.tail = place.segment;
        scan.segments[place.segment].last = scan.number;
        scan.last_at = place.offset as u64;
        scan.at = (place.offset + found.span) as u64;
        scan.oldest = scan.oldest.max(found.header.oldest);
        scan.opened.batches += 1;
        scan.opened.records += u64::from(records - tables);
        scan.opened.bytes += found.span as u64;
        scan.unsynced.push_back(Unsynced { number: scan.number, place, span: found.span });
        let mark = self.mark;
        while scan.unsynced.front().is_some_and(|first| first.number <= mark) {
            scan.unsynced.pop_front();
        }
        Ok(())
    }

    /// Takes the records of a batch; returns their number, and that of the tables among them.
    fn take_records(&mut self, found: &Frame<'_>, place: Place) -> Result<(u32, u32), Flaw> {
        let Self { scan: Scan { segments, promises, has_table, .. }, visit, refused, is_done, .. } = self;
        let Found { version, spans, .. } = &mut segments[place.segment];
        let version = *version;
        let at = (found.header.number, place.offset as u64);
        // The first batch of a segment begins with the table, and no other record is one.
        let mut wants_table = version > 1 && place.offset == BLOCK;
        let (mut records, mut tables) = (0, 0);
        let mut rest = found.payload;
        let mut is_shown = refused.is_none() && !*is_done;
        while !rest.is_empty() {
            let (stored, after) = split(version, rest)?;
            if wants_table != matches!(stored, Stored::Table(_)) {
                return Err(Flaw::Damage(Damage::Table));
            }
            wants_table = false;
            match stored {
                Stored::Item(item) => {
                    match item {
                        Item::Entry(record) => spans.raise(record.shard, record.index, at),
                        Item::Promise(promise) => {
                            let is_kept = promises.raise(&promise);
                            if !is_kept || promises.len() > Promises::COUNT_MAX {
                                return Err(Flaw::Damage(Damage::Promise));
                            }
                        }
                        Item::Cut(_) => {}
                        Item::Install(install) => {
                            if install.base.epoch > install.epoch {
                                return Err(Flaw::Damage(Damage::Install));
                            }
                            spans.raise(install.shard, install.top(), at);
                        }
                    }
                    is_shown = is_shown && show(item, *visit, refused, is_done);
                }
                Stored::Table(table) => {
                    let table = decode_table(table).ok_or(Unreadable::Malformed)?;
                    // After trimming, the log begins with a table that no earlier record confirms.
                    if std::mem::replace(has_table, true) {
                        if *promises != table {
                            return Err(Flaw::Damage(Damage::Table));
                        }
                    } else {
                        for promise in table.iter() {
                            let item = Item::Promise(promise);
                            is_shown = is_shown && show(item, *visit, refused, is_done);
                        }
                        *promises = table;
                    }
                    tables += 1;
                }
                Stored::Unknown => {}
            }
            records += 1;
            rest = after;
        }
        if wants_table {
            return Err(Flaw::Damage(Damage::Table));
        }
        if records != found.header.records {
            return Err(Flaw::Damage(Damage::Records));
        }
        Ok((records, tables))
    }

    fn finish(mut self) -> Result<Scan, WalError> {
        let Some(first) = self.scan.segments.first() else { return Ok(self.scan) };
        // Only prepared segments are left: no log begins with one, except the very first.
        let none_written =
            self.scan.number == 0 && self.mark == 0 && !self.leapt && self.scan.stray.is_empty();
        if none_written && first.id > 1 {
            return Err(WalError::MissingSegment { path: log_path(&self.options.dir, first.id - 1) });
        }
        let broken = self.broken.as_ref();
        // A crash while a log was being created.
        let never_written = self.options.create && first.id == 1 && self.mark == 0;
        if self.scan.number < self.mark || (self.scan.number == 0 && !never_written) {
            let (place, damage) = match broken {
                Some(broken) => (broken.place, broken.damage.clone()),
                None => (Place { segment: self.scan.tail, offset: 0 }, Damage::NoBatch),
            };
            return Err(self.corrupt(place, damage));
        }
        if first.id > self.scan.oldest && self.scan.number > 0 {
            return Err(WalError::MissingSegment { path: log_path(&self.options.dir, first.id - 1) });
        }
        // The damage of the log itself is the likelier cause, and the better message.
        if let Some(refused) = self.refused.take() {
            return Err(WalError::Visit(refused));
        }
        let cut = broken.filter(|_| !self.scan.stray.is_empty()).map(|broken| Cut {
            path: self.path(broken.place.segment),
            offset: broken.place.offset as u64,
            damage: broken.damage.clone(),
        });
        let mut scan = self.scan;
        scan.opened.cut = cut;
        scan.opened.unsynced = scan.unsynced.len() as u64;
        scan.opened.segments = scan.segments.len() as u64;
        Ok(scan)
    }
}

impl Scan {
    /// Opens the file of a segment to be changed; the previous one is synced and closed. Changes come in the order of
    /// the segments, so that few segments change more than once.
    fn touch<'f>(
        &self,
        disk: &dyn Disk,
        dir: &str,
        segment: usize,
        open: &'f mut Option<(usize, Box<dyn DiskFile>)>,
    ) -> Result<(&'f dyn DiskFile, String), WalError> {
        let path = log_path(dir, self.segments[segment].id);
        if let Some((before, file)) = open.take_if(|(before, _)| *before != segment) {
            let path = log_path(dir, self.segments[before].id);
            file.sync_data().map_err(WalError::io("sync", &path))?;
        }
        let file = match open.take() {
            Some((_, file)) => file,
            None => disk.open(&path, Open::Existing).map_err(WalError::io("open", &path))?,
        };
        Ok((&*open.insert((segment, file)).1, path))
    }

    /// Makes the records that [`scan`] found durable, and wipes the rest.
    pub(crate) fn repair(&mut self, disk: &dyn Disk, options: &WalOptions) -> Result<(), WalError> {
        let dir = &options.dir;
        for path in std::mem::take(&mut self.temporary) {
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        let mut free = Vec::new();
        for id in std::mem::take(&mut self.free) {
            let path = free_path(dir, id);
            let len = disk.len(&path).map_err(WalError::io("look at", &path))?;
            match len.filter(|len| options.is_reusable(*len) && free.len() < options.free_max) {
                Some(bytes) => free.push(Free { id, bytes }),
                None => disk.remove(&path).map_err(WalError::io("remove", &path))?,
            }
        }
        self.reusable = free;

        // Prepared segments of an older version, or of an unwanted length, are removed, the last one first and each
        // durably before the next: a crash leaves no gap.
        let is_wanted = |spare: &Found| spare.version == FORMAT && options.is_reusable(spare.bytes);
        if self.segments.iter().skip(self.tail + 1).any(|spare| !is_wanted(spare)) {
            while self.segments.len() > self.tail + 1 {
                let spare = self.segments.pop().expect("longer than the tail's place");
                let path = log_path(dir, spare.id);
                disk.remove(&path).map_err(WalError::io("remove", &path))?;
                disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
            }
            self.stray.retain(|place| place.segment <= self.tail);
        }

        let mut open: Option<(usize, Box<dyn DiskFile>)> = None;
        for place in std::mem::take(&mut self.stray) {
            let (file, path) = self.touch(disk, dir, place.segment, &mut open)?;
            let (mut block, offset) = ([0; BLOCK], place.offset as u64);
            read_exact_at(file, &mut block, offset).map_err(WalError::io("read", &path))?;
            frame::unmark(&mut block);
            file.write_at(&block, offset).map_err(WalError::io("write", &path))?;
        }
        // Reading them back proves nothing: after a failed sync the system's cache may differ from the disk. So they
        // are written again.
        for unsynced in std::mem::take(&mut self.unsynced) {
            let (file, path) = self.touch(disk, dir, unsynced.place.segment, &mut open)?;
            let mut bytes = vec![0; unsynced.span];
            let offset = unsynced.place.offset as u64;
            read_exact_at(file, &mut bytes, offset).map_err(WalError::io("read", &path))?;
            file.write_at(&bytes, offset).map_err(WalError::io("write", &path))?;
        }
        if let Some((segment, file)) = open {
            let path = log_path(dir, self.segments[segment].id);
            file.sync_data().map_err(WalError::io("sync", &path))?;
        }
        // The found names may not be durable yet.
        disk.sync_dir(dir).map_err(WalError::io("sync", dir))
    }
}
