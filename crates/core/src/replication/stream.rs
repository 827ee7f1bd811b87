//! The stream of one shard's log to one peer, at the primary: what is sent next, what is on its way, and when the peer is slow.
//!
//! Frames are sent ahead of their acknowledgements, up to a window of bytes. Nothing is kept here for what is not sent: the
//! caller reads it from the log, so that a slow peer costs the window, and then no more than its place in the log. Entries
//! that the log no longer has are replaced by a snapshot.
//!
//! Knows no entry: `bytes_to` of each call returns the bytes of all entries up to an index, counted from anywhere.

use super::replica::AppendHead;
use super::table::{EpochTable, LogPoint};
use crate::ids::{Epoch, Index, Micros, Time};
use std::collections::VecDeque;

/// The bounds of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamLimits {
    /// The bytes of entries that may be on their way. A single entry may exceed it.
    pub window: u64,
    /// The bytes of entries in a frame. A single entry may exceed it.
    pub frame: u64,
    /// The bytes of entries by which a peer may lag; behind that it is slow.
    pub lag_max: u64,
    /// The span without progress after which a peer that lags is slow.
    pub stall_max: Micros,
}

/// The next thing to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A frame with the entries behind `head.before`, up to `last`; without entries if that is `head.before`.
    Append {
        /// The head of the frame.
        head: AppendHead,
        /// The index of its last entry.
        last: Index,
    },
    /// A snapshot of committed state: the log no longer has what the peer needs. The caller chooses one, and reports it with
    /// [`Stream::handle_snapshot`].
    Snapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    /// It is not known whether the logs agree before `next`: one frame is sent, and its answer awaited.
    Probe { is_sent: bool },
    /// Frames are sent without awaiting answers.
    Flow,
    /// A snapshot is sent; `None` until the caller has chosen one.
    Snapshot(Option<LogPoint>),
}

/// The stream to one peer in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stream {
    epoch: Epoch,
    limits: StreamLimits,
    mode: Mode,
    next: Index,
    /// The place from which it is sent again on a new connection.
    from: Index,
    acked: Index,
    /// The frames that are on their way, by their last index, with the bytes of their entries.
    in_flight: VecDeque<(Index, u64)>,
    /// The time of the last progress, or at which the peer lacked nothing.
    progress: Time,
    is_slow: bool,
    /// A power cut may take what the peer has acknowledged.
    may_lose: bool,
    /// The snapshot that the peer has received and not acknowledged yet.
    received: Option<LogPoint>,
}

impl Stream {
    /// Creates the stream of an epoch that begins behind an entry. Its first frame holds the start entry.
    #[must_use]
    pub fn new(epoch: Epoch, base: LogPoint, limits: StreamLimits, now: Time) -> Self {
        Self {
            epoch,
            limits,
            mode: Mode::Probe { is_sent: false },
            next: base.index.next(),
            from: base.index.next(),
            acked: Index(0),
            in_flight: VecDeque::new(),
            progress: now,
            is_slow: false,
            may_lose: false,
            received: None,
        }
    }

    /// Lets the peer report a log that lacks what it has acknowledged: a power cut took that.
    #[must_use]
    pub fn that_may_lose(self, may_lose: bool) -> Self {
        Self { may_lose, ..self }
    }

    /// Returns the index up to which the peer's log is known to be durable and equal to the primary's.
    #[must_use]
    pub fn acked(&self) -> Index {
        self.acked
    }

    /// Returns the index up to which the peer must hold the log, or is void: what it has acknowledged; 0 if a power cut may take that.
    #[must_use]
    pub fn kept(&self) -> Index {
        if self.may_lose { Index(0) } else { self.acked }
    }

    /// Returns the bytes of entries that are on their way.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the snapshot that is on its way, or not acknowledged yet: entries behind it must not be trimmed meanwhile.
    #[must_use]
    pub fn snapshot(&self) -> Option<LogPoint> {
        if let Mode::Snapshot(base) = self.mode { base } else { self.received }
    }

    /// Returns what to send next; `None` if nothing may be sent now. `table` is the primary's log, `commit` its commit index,
    /// which rides along; `room` is the bytes that the connection has left for entries of all its shards. If there is room at
    /// all, an entry that exceeds it is sent as long as nothing else of this stream is on its way.
    pub fn poll(
        &mut self,
        table: &EpochTable,
        commit: Index,
        room: u64,
        bytes_to: impl Fn(Index) -> u64,
    ) -> Option<Outgoing> {
        if matches!(self.mode, Mode::Probe { is_sent: true } | Mode::Snapshot(_)) {
            return None;
        }
        let before = Index(self.next.0 - 1);
        let Some(epoch) = table.epoch_at(before) else {
            self.mode = Mode::Snapshot(None);
            self.in_flight.clear();
            return Some(Outgoing::Snapshot);
        };
        let sent = bytes_to(before);
        let in_flight = self.in_flight();
        let bound = self.limits.frame.min(room).min(self.limits.window.saturating_sub(in_flight));
        let end = table.last().index;
        let mut last = before;
        if room > 0 && in_flight == 0 && last < end {
            last = last.next();
        }
        while last < end && bytes_to(last.next()) - sent <= bound {
            last = last.next();
        }
        if let Mode::Probe { is_sent } = &mut self.mode {
            *is_sent = true;
        } else if last == before {
            return None;
        }
        if last > before {
            self.in_flight.push_back((last, bytes_to(last) - sent));
            self.next = last.next();
        }
        let before = LogPoint { epoch, index: before };
        Some(Outgoing::Append { head: AppendHead { epoch: self.epoch, before, commit }, last })
    }

    /// Returns the bytes of entries that were not sent. `None` if there are none, or none may be sent now; also while the first frame is
    /// on its way, or a snapshot.
    #[must_use]
    pub fn unsent(&self, last: Index, bytes_to: impl Fn(Index) -> u64) -> Option<u64> {
        let flows = self.mode == Mode::Flow && self.next <= last && self.in_flight() < self.limits.window;
        flows.then(|| bytes_to(last) - bytes_to(Index(self.next.0 - 1)))
    }

    /// Returns the head of a frame without entries, which brings a peer the commit index when no entry follows for long;
    /// `None` unless the logs are known to agree.
    #[must_use]
    pub fn heartbeat(&self, table: &EpochTable, commit: Index) -> Option<AppendHead> {
        let epoch = table.epoch_at(self.acked).filter(|_| self.mode == Mode::Flow)?;
        let before = LogPoint { epoch, index: self.acked };
        Some(AppendHead { epoch: self.epoch, before, commit })
    }

    /// Handles an acknowledgement: the peer's log is durable up to `upto`, and equal to the primary's.
    pub fn handle_ack(&mut self, now: Time, epoch: Epoch, upto: Index) {
        if epoch != self.epoch {
            return;
        }
        match self.mode {
            Mode::Snapshot(base) if base.is_none_or(|base| upto < base.index) => return,
            _ => self.mode = Mode::Flow,
        }
        self.received = self.received.filter(|base| upto < base.index);
        if upto > self.acked {
            (self.acked, self.progress) = (upto, now);
        }
        self.from = self.from.max(upto.next());
        self.next = self.next.max(upto.next());
        while self.in_flight.pop_front_if(|(last, _)| *last <= upto).is_some() {}
    }

    /// Handles that a frame does not follow from the peer's log: it is sent what comes behind the last entry that both have. A report of
    /// an older epoch says nothing of the log, but may be of a replica that was placed while the first frame was on its way, which it
    /// then never got: that is sent again.
    pub fn handle_diverged(&mut self, epoch: Epoch, own: &EpochTable, peer: &EpochTable) {
        if epoch < self.epoch && matches!(self.mode, Mode::Probe { .. }) {
            return self.handle_connected();
        }
        if epoch != self.epoch || matches!(self.mode, Mode::Snapshot(_)) {
            return;
        }
        // One that comes late is of an older log. What was acknowledged stays, and may be trimmed here: a snapshot, whose last entry
        // may need this peer to be committed, must not take its place.
        let common = own.common(peer).index;
        if self.may_lose {
            self.acked = self.acked.min(common);
        }
        self.from = common.max(self.acked).next();
        self.handle_connected();
    }

    /// Handles that a snapshot at `base`, which is committed, is being sent.
    pub fn handle_snapshot(&mut self, base: LogPoint) {
        if let Mode::Snapshot(sent) = &mut self.mode {
            *sent = Some(base);
        }
    }

    /// Handles that the peer has all of the snapshot at `base`: a frame that follows from it is sent. Its answer repeats the peer's
    /// acknowledgement of the snapshot, which nothing else would if it was lost with a connection.
    pub fn handle_snapshot_received(&mut self, base: LogPoint) {
        if self.mode == Mode::Snapshot(Some(base)) {
            self.next = base.index.next();
            self.mode = Mode::Probe { is_sent: false };
            self.received = Some(base);
        }
    }

    /// Handles that the connection is a new one: what was on its way may be lost.
    pub fn handle_connected(&mut self) {
        self.next = self.from;
        self.received = None;
        self.in_flight.clear();
        self.mode = Mode::Probe { is_sent: false };
    }

    /// Handles that a frame was not sent, because the log no longer has its entries.
    pub fn handle_unread(&mut self) {
        if !matches!(self.mode, Mode::Snapshot(_)) {
            self.handle_connected();
        }
    }

    /// Whether the peer is known to hold the log but for what may be on its way.
    #[must_use]
    pub fn is_close(&self, last: Index, bytes_to: impl Fn(Index) -> u64) -> bool {
        self.mode == Mode::Flow && bytes_to(last) - bytes_to(self.acked) <= self.limits.window
    }

    /// Looks whether the peer is slow, of whose primary `last` is the last entry. Must be called from time to time.
    pub fn look(&mut self, now: Time, last: Index, bytes_to: impl Fn(Index) -> u64) {
        if self.acked >= last {
            (self.progress, self.is_slow) = (now, false);
            return;
        }
        let lag = bytes_to(last) - bytes_to(self.acked);
        self.is_slow = lag > self.limits.lag_max || now.since(self.progress) >= self.limits.stall_max;
    }

    /// Whether the peer was slow at the last [`Self::look`]: it lagged by more than the bound, or made no progress.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StreamLimits =
        StreamLimits { window: 100, frame: 40, lag_max: 1_000, stall_max: Micros(50) };

    fn at(epoch: u64, index: u64) -> LogPoint {
        LogPoint { epoch: Epoch(epoch), index: Index(index) }
    }

    fn table(base: LogPoint, epoch: u64, last: u64) -> EpochTable {
        let mut table = EpochTable::new(base);
        (base.index.0 + 1..=last).for_each(|index| table.push(at(epoch, index)));
        table
    }

    /// Entries of 20 bytes.
    fn bytes_to(index: Index) -> u64 {
        index.0 * 20
    }

    fn append(outgoing: Option<Outgoing>) -> (u64, u64) {
        let Some(Outgoing::Append { head, last }) = outgoing else { panic!("{outgoing:?}") };
        (head.before.index.0, last.0)
    }

    /// A stream whose first frame, the start entry 1, is acknowledged.
    fn flowing() -> Stream {
        let mut stream = Stream::new(Epoch(2), LogPoint::default(), LIMITS, Time(0));
        let first = stream.poll(&table(at(0, 0), 2, 1), Index(0), 1_000, bytes_to);
        assert_eq!(append(first), (0, 1));
        stream.handle_ack(Time(1), Epoch(2), Index(1));
        stream
    }

    #[test]
    fn frames_are_sent_ahead_up_to_the_window() {
        let (mut stream, log) = (flowing(), table(at(0, 0), 2, 20));
        let poll = |stream: &mut Stream| stream.poll(&log, Index(1), 1_000, bytes_to);
        assert_eq!(append(poll(&mut stream)), (1, 3));
        assert_eq!(append(poll(&mut stream)), (3, 5));
        assert_eq!(append(poll(&mut stream)), (5, 6));
        assert_eq!((poll(&mut stream), stream.in_flight()), (None, 100));
        stream.handle_ack(Time(2), Epoch(2), Index(4));
        assert_eq!((append(poll(&mut stream)), stream.in_flight()), ((6, 8), 100));
        stream.handle_ack(Time(2), Epoch(1), Index(8));
        assert_eq!(stream.acked(), Index(4), "an acknowledgement of another epoch");
    }

    #[test]
    fn the_room_of_a_connection_is_shared_by_its_shards() {
        let (mut stream, log) = (flowing(), table(at(0, 0), 2, 20));
        assert_eq!(stream.poll(&log, Index(1), 0, bytes_to), None);
        assert_eq!(append(stream.poll(&log, Index(1), 5, bytes_to)), (1, 2));
        assert_eq!(stream.poll(&log, Index(1), 5, bytes_to), None);
        assert_eq!(append(stream.poll(&log, Index(1), 25, bytes_to)), (2, 3));
    }

    #[test]
    fn a_report_that_comes_late_takes_back_no_acknowledgement() {
        let (mut stream, mut log) = (flowing(), table(at(0, 0), 2, 3));
        assert_eq!(append(stream.poll(&log, Index(1), 1_000, bytes_to)), (1, 3));
        stream.handle_ack(Time(2), Epoch(2), Index(3));
        stream.handle_diverged(Epoch(2), &log, &table(at(0, 0), 2, 1));
        log.rebase(at(2, 3));
        log.push(at(2, 4));
        assert_eq!(append(stream.poll(&log, Index(3), 1_000, bytes_to)), (3, 4), "no snapshot");
    }

    #[test]
    fn only_one_frame_is_sent_before_it_is_known_where_the_logs_part() {
        let log = table(at(1, 3), 2, 9);
        let mut stream = Stream::new(Epoch(2), at(1, 3), LIMITS, Time(0));
        assert_eq!(append(stream.poll(&log, Index(0), 1_000, bytes_to)), (3, 5));
        assert_eq!(stream.poll(&log, Index(0), 1_000, bytes_to), None);
        let mut own = table(at(0, 0), 1, 3);
        (4..=9).for_each(|index| own.push(at(2, index)));
        stream.handle_diverged(Epoch(2), &own, &table(at(0, 0), 1, 2));
        assert_eq!(append(stream.poll(&own, Index(0), 1_000, bytes_to)), (2, 4));
        assert_eq!(stream.poll(&own, Index(0), 1_000, bytes_to), None);
        stream.handle_ack(Time(1), Epoch(2), Index(4));
        assert_eq!(append(stream.poll(&own, Index(0), 1_000, bytes_to)), (4, 6));
    }

    #[test]
    fn the_first_frame_is_sent_again_to_a_peer_that_has_heard_of_an_older_epoch_only() {
        let log = table(at(1, 3), 2, 9);
        let mut stream = Stream::new(Epoch(2), at(1, 3), LIMITS, Time(0));
        assert_eq!(append(stream.poll(&log, Index(0), 1_000, bytes_to)), (3, 5));
        stream.handle_diverged(Epoch(3), &log, &table(at(0, 0), 1, 3));
        assert_eq!(stream.poll(&log, Index(0), 1_000, bytes_to), None);
        stream.handle_diverged(Epoch(1), &log, &EpochTable::new(LogPoint::default()));
        assert_eq!(append(stream.poll(&log, Index(0), 1_000, bytes_to)), (3, 5));
        stream.handle_ack(Time(1), Epoch(2), Index(5));
        stream.handle_diverged(Epoch(1), &log, &EpochTable::new(LogPoint::default()));
        assert_eq!(append(stream.poll(&log, Index(0), 1_000, bytes_to)), (5, 7), "it flows");
    }

    #[test]
    fn what_the_log_no_longer_has_is_replaced_by_a_snapshot() {
        let log = table(at(2, 7), 2, 9);
        let mut stream = flowing();
        assert_eq!(stream.poll(&log, Index(9), 1_000, bytes_to), Some(Outgoing::Snapshot));
        assert_eq!((stream.poll(&log, Index(9), 1_000, bytes_to), stream.snapshot()), (None, None));
        stream.handle_snapshot(at(2, 7));
        assert_eq!(stream.snapshot(), Some(at(2, 7)), "the entries behind it are kept");
        stream.handle_ack(Time(2), Epoch(2), Index(1));
        assert_eq!(stream.snapshot(), Some(at(2, 7)), "an old acknowledgement");
        stream.handle_ack(Time(3), Epoch(2), Index(7));
        assert_eq!(stream.snapshot(), None);
        assert_eq!(append(stream.poll(&log, Index(9), 1_000, bytes_to)), (7, 9));
    }

    #[test]
    fn a_peer_that_has_a_snapshot_is_asked_for_its_acknowledgement() {
        let log = table(at(2, 7), 2, 9);
        let mut stream = flowing();
        assert_eq!(stream.poll(&log, Index(9), 1_000, bytes_to), Some(Outgoing::Snapshot));
        stream.handle_snapshot_received(at(2, 7));
        assert_eq!(stream.poll(&log, Index(9), 1_000, bytes_to), None, "that is of an older transfer");
        stream.handle_snapshot(at(2, 7));
        stream.handle_snapshot_received(at(2, 7));
        assert_eq!(append(stream.poll(&log, Index(9), 1_000, bytes_to)), (7, 9));
        assert_eq!(stream.poll(&log, Index(9), 1_000, bytes_to), None, "its answer is awaited");
        assert_eq!(stream.snapshot(), Some(at(2, 7)), "the entries behind it are kept");
        let mut acknowledged = stream.clone();
        acknowledged.handle_ack(Time(1), Epoch(2), Index(7));
        assert_eq!(acknowledged.snapshot(), None);
        // It has the snapshot no more.
        stream.handle_diverged(Epoch(2), &log, &EpochTable::new(LogPoint::default()));
        assert_eq!(stream.poll(&log, Index(9), 1_000, bytes_to), Some(Outgoing::Snapshot));
    }

    #[test]
    fn a_new_connection_begins_behind_what_was_acknowledged() {
        let (mut stream, log) = (flowing(), table(at(0, 0), 2, 20));
        stream.poll(&log, Index(1), 1_000, bytes_to);
        stream.handle_connected();
        assert_eq!(append(stream.poll(&log, Index(1), 1_000, bytes_to)), (1, 3));
        assert_eq!(stream.poll(&log, Index(1), 1_000, bytes_to), None, "it is asked first");
        let mut first = Stream::new(Epoch(2), LogPoint::default(), LIMITS, Time(0));
        first.poll(&log, Index(0), 1_000, bytes_to);
        first.handle_connected();
        assert_eq!(append(first.poll(&log, Index(0), 1_000, bytes_to)), (0, 2));
    }

    #[test]
    fn a_peer_without_progress_or_far_behind_is_slow() {
        fn is_slow(stream: &mut Stream, now: u64, last: u64) -> bool {
            stream.look(Time(now), Index(last), bytes_to);
            stream.is_slow()
        }
        let mut stream = flowing();
        assert!(!is_slow(&mut stream, 500, 1), "it lacks nothing");
        assert!(!is_slow(&mut stream, 549, 2));
        assert!(is_slow(&mut stream, 550, 2));
        stream.handle_ack(Time(550), Epoch(2), Index(2));
        assert!(!is_slow(&mut stream, 551, 52));
        assert!(is_slow(&mut stream, 551, 53));
    }

    #[test]
    fn a_heartbeat_brings_the_commit_index_once_the_logs_agree() {
        let log = table(at(0, 0), 2, 4);
        assert_eq!(
            Stream::new(Epoch(2), LogPoint::default(), LIMITS, Time(0)).heartbeat(&log, Index(0)),
            None
        );
        let head = AppendHead { epoch: Epoch(2), before: at(2, 1), commit: Index(1) };
        assert_eq!(flowing().heartbeat(&log, Index(1)), Some(head));
    }
}
