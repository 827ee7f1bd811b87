//! A shard at its primary: it runs the handlers, turns their effects into entries, and lets nothing leave too early.
//!
//! Everything that leaves waits in the release queue until its entry is committed, but for the answers of an asynchronous service. Work that cannot be
//! done yet (the epoch is not active, the log is full, an attempt has to be logged first) waits in the job queue.

mod dead_letters;
mod early;
mod io;
mod jobs;
mod processes;
mod queue;
mod release;
mod requests;
mod settings;
mod starting;
mod suspicion;

pub use io::{DeadLetterAction, Effect, Input, Messages, StepOutcome};
pub use settings::Settings;

use crate::calls::{Call, Caller, Misuse, Outcome};
#[cfg(doc)]
use crate::capture::Reading;
use crate::clock::{Clock, Now};
use crate::commit_tracker::{CommitTracker, EpochConfig};
use crate::entry::{Cause, Entry, Send, Trim, Write};
use crate::handler::{Handler, Txn};
use crate::ids::{
    Colour, Epoch, Index, Micros, RequestNumber, Seq, Served, ServiceId, SessionId, ShardId, StepRun, Time,
};
use crate::key::Key;
use crate::record::{RecordKey, SessionRecord, encode_value};
use crate::records::Piece;
use crate::replication::table::Losses;
use crate::reply::Reply;
use crate::shrink;
use crate::state::{Header, State};
use crate::topology::Topology;
use early::Early;
use queue::Jobs;
use release::Release;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use suspicion::Suspicion;

/// A shard at its primary.
pub struct Shard {
    state: State,
    service: ServiceId,
    topology: Arc<Topology>,
    settings: Settings,
    replica: Option<CommitTracker>,
    /// Clients are answered before their entries are committed.
    early: Option<Early>,
    /// What failovers have lost, as the record of the epoch names it: final once the epoch is active (rule 19).
    losses: Losses,
    /// The age of the state for the next query that allows one: 0 for a primary without peers.
    staleness: Micros,
    clock: Clock,
    full: bool,
    release: Release,
    jobs: Jobs,
    trims: BTreeMap<ShardId, Seq>,
    trim_at: Option<Time>,
    /// By session, the number up to which its client has the replies, if one entry could not delete them all.
    confirms: BTreeMap<SessionId, RequestNumber>,
    is_full_due: bool,
    /// The checkpoint of the last part, until it is known to exist: nothing can build on that part before.
    unconfirmed: Option<Colour>,
    /// The highest colour received before the shard served.
    heard: Colour,
    suspicion: Suspicion,
    /// The session whose replies are being deleted, and the number of the next one to look for.
    expiring: Option<(SessionId, u64)>,
    /// Work of this input so far, as counted for [`Settings::work_max`].
    work: usize,
    /// Index and bytes of each entry that is not committed; and the sum of the bytes.
    uncommitted: VecDeque<(Index, usize)>,
    uncommitted_bytes: usize,
    /// The shell lacks memory for more work of clients.
    is_crowded: bool,
    /// Jobs are left because this input has reached its limit.
    is_cut: bool,
}

/// A violated invariant of the design.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {invariant} is violated at shard {shard}: {what}")]
pub struct Violation {
    /// Its number in the design.
    pub invariant: u8,
    /// The shard.
    pub shard: ShardId,
    /// The violation.
    pub what: String,
}

// The key of an idempotency record has the process, the principal and the key, the first two with their lengths.
const _: () = assert!(
    1 + 2 + Key::LEN_MAX + 2 + Shard::PRINCIPAL_MAX + Shard::IDEMPOTENCY_KEY_MAX <= RecordKey::LEN_MAX
);
// One entry deletes at least as many replies as the fold does at once, and the window is never smaller than that.
const _: () = assert!(State::CONFIRM_STEP <= Shard::EXPIRE_BATCH as u64);
const _: () = assert!(State::CONFIRM_STEP <= Shard::SESSION_WINDOW);

impl Shard {
    /// Maximum distance of a request's number from the number that its client confirmed.
    pub const SESSION_WINDOW: u64 = State::SESSION_WINDOW;
    /// Maximum number of bytes of an idempotency key.
    pub const IDEMPOTENCY_KEY_MAX: usize = 256;
    /// Time after which the client of an overloaded shard should retry.
    pub const RETRY_AFTER: Duration = Duration::from_millis(50);
    /// Maximum number of bytes of a principal's name.
    pub const PRINCIPAL_MAX: usize = 256;
    /// Number of messages of a delivery whose records are prefetched.
    const LOOK_AHEAD: usize = 8;
    /// Maximum number of records that one tick looks at to delete expired ones.
    const EXPIRE_BATCH: usize = 1024;
    /// Served time without an entry after which the shard logs its clocks: 10 min. The end of a
    /// process life loses less than that of its served time.
    const NOTE_CLOCK: Micros = Micros::from_secs(10 * 60);
    /// Number of channels and timers that count as one unit of work where each is only looked at.
    const LOOKS_AT_ONCE: usize = 16;
    /// Number of bytes of an entry or of a task's state that count as one unit of work.
    const WORK_BYTES: usize = 4096;
    /// Maximum number of channels that one entry trims, so that it fits into any log.
    const TRIM_BATCH: usize = 256;

    /// Creates a shard from the state of its log, before it leads an epoch.
    ///
    /// # Panics
    /// If the topology has no such shard.
    #[must_use]
    pub fn new(state: State, topology: Arc<Topology>, settings: Settings) -> Self {
        let service = topology.service_of(state.shard()).expect("a shard is made for its topology");
        let position = state.position();
        let clock = Clock::new(position.time, position.served(), settings.clock_confirm);
        let (colour, jobs) = (position.colour, Jobs::new(&state));
        Self {
            state,
            service,
            topology,
            settings,
            replica: None,
            early: None,
            losses: Losses::default(),
            staleness: Micros(0),
            clock,
            full: false,
            release: Release::new(colour),
            jobs,
            trims: BTreeMap::new(),
            trim_at: None,
            confirms: BTreeMap::new(),
            is_full_due: false,
            // The records that the start found in a checkpoint count as held by it, and all others as changed.
            unconfirmed: None,
            heard: Colour(0),
            suspicion: Suspicion::new(),
            expiring: None,
            work: 0,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            is_crowded: false,
            is_cut: false,
        }
    }

    /// Handles one input. `now` has the readings of the shell's clocks: see [`Now`]. Effects are appended to `out` in
    /// the order in which they have to be performed.
    ///
    /// # Panics
    /// If an effect breaks a rule that a crash would turn into a lost or contradicted promise: see [`Shard::check`].
    pub fn handle(&mut self, now: Now, input: Input, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        let (first, epoch, commit) = (out.len(), self.state.position().epoch, self.commit());
        self.handle_input(now, input, handler, out);
        self.assert_edge(epoch, commit, &out[first..]);
    }

    /// Asserts the invariants of each input's effects, in release builds too.
    fn assert_edge(&self, epoch_before: Epoch, commit_before: Index, effects: &[Effect]) {
        let (shard, position, commit) = (self.state.shard(), self.state.position(), self.commit());
        assert!(position.epoch >= epoch_before, "shard {shard}: the epoch falls from {epoch_before} [1]");
        assert!(commit >= commit_before, "shard {shard}: the commit index falls from {commit_before} [2]");
        assert!(
            commit <= position.index,
            "shard {shard}: commits {commit} of {} entries [2]",
            position.index
        );
        let answerable = match (&self.early, &self.replica) {
            (Some(_), Some(replica)) => replica.answerable().max(commit),
            _ => commit,
        };
        for effect in effects {
            let (seen, upto) = match effect {
                Effect::Append { epoch, .. } => {
                    assert_eq!(*epoch, position.epoch, "shard {shard} appends an entry of another epoch [1]");
                    continue;
                }
                Effect::Answer(answer) => (answer.index, answerable),
                Effect::Query(reading) => (reading.index, answerable),
                // Their entries are in order.
                Effect::Deliver { messages, .. } => {
                    (messages.last().map_or(Index(0), |last| last.index), commit)
                }
                _ => continue,
            };
            assert!(seen <= upto, "shard {shard}: entry {seen} shows before it is committed [5]");
        }
    }

    // Otherwise the input, which is large, is copied once more.
    #[inline(always)]
    fn handle_input(&mut self, now: Now, input: Input, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        if self.replica.is_some() {
            self.clock.advance(now, self.is_active());
        }
        self.work = 0;
        match input {
            Input::Start(config) => self.handle_start(now, config, out),
            Input::Stored { member, epoch, upto } => {
                let upto = upto.min(self.state.position().index);
                let Some(replica) = self.replica.as_mut().filter(|r| r.config().epoch() == epoch) else {
                    return;
                };
                let was_active = replica.is_active();
                let grows = replica.handle_stored(member, upto);
                if grows || self.is_behind() {
                    self.note_commit();
                    if grows && !was_active {
                        self.handle_active(epoch, out);
                    }
                    self.let_go(out);
                    self.run_jobs(handler, out);
                }
            }
            Input::OpenSession { token, session, principal } => {
                self.handle_open_session(token, session, &principal, out);
            }
            Input::Request(request) => {
                self.handle_request(request, handler, out);
                self.run_jobs(handler, out);
            }
            Input::Query(query) => self.handle_query(query, handler, out),
            Input::Deliver { from, messages, again } => {
                self.handle_deliver(from, messages, again, handler, out);
            }
            Input::Ack { from, upto, colour } => self.handle_ack(from, upto, colour, out),
            Input::Colour(colour) => self.mark(colour, out),
            Input::Completed(number) => {
                self.unconfirmed = self.unconfirmed.filter(|unconfirmed| unconfirmed.number() != number);
            }
            Input::TaskStep { id, step, run, outcome } => {
                self.jobs.push_step(id, step, run, outcome);
                self.run_jobs(handler, out);
            }
            Input::StepBegins { id, run } => {
                self.jobs.push_begin(id, run);
                self.run_jobs(handler, out);
            }
            Input::Turn(kind) => {
                self.handle_turn(kind);
                self.run_jobs(handler, out);
            }
            Input::Yield => {
                self.yield_turn(out);
                self.run_jobs(handler, out);
            }
            Input::Open => {
                self.suspicion.held = false;
                self.run_jobs(handler, out);
            }
            Input::DeadLetter { token, letter, action } => {
                self.handle_dead_letter(token, letter, action, handler, out);
                self.run_jobs(handler, out);
            }
            Input::Delete { token, process, records } => self.handle_delete(token, process, records, out),
            Input::Look { token, look } => self.handle_look(token, &look, out),
            Input::Full(full) => {
                self.full = full;
                self.run_jobs(handler, out);
            }
            Input::Tick => self.handle_tick(handler, out),
        }
    }

    /// Prefetches the records that an input will need, which are spread over all the memory. Changes nothing.
    pub fn look_ahead(&self, input: &Input) {
        if let Input::Deliver { messages, .. } = input {
            for message in messages.iter().take(Self::LOOK_AHEAD) {
                self.state.records().look_ahead(RecordKey::process(&message.process).as_bytes());
            }
        }
    }

    /// Returns the steady time at which the shard wants [`Input::Tick`]; a past time means at once. It uses the clocks
    /// of the last input: after a jump of the wall clock a tick lets the shard look at it again.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        if !self.is_active() {
            return None;
        }
        let timer = (!self.blocked()).then(|| self.next_timer()).flatten();
        let timer = timer.into_iter().chain(self.jobs.next_retry()).min();
        let timer = timer.map(|at| self.clock.steady_at(at));
        let expiry = self.state.expiries().first().map(|(at, _)| *at);
        let served = expiry.into_iter().chain([self.note_clock_at()]).min().filter(|_| !self.full);
        let served = served.map(|at| self.clock.steady_at_served(at));
        let trim = self.trim_at.filter(|_| !self.full);
        let goes_on = self.is_cut
            || self.is_behind()
            || self.jobs.starting.is_some()
            || (!self.full && !self.confirms.is_empty());
        let ready = (goes_on || self.job_is_ready()).then_some(self.clock.steady());
        let tasks = self.suspicion.deadline().filter(|_| !self.blocked());
        [timer, served, trim, ready, tasks, self.release.deadline()].into_iter().flatten().min()
    }

    /// Announces what failovers have lost to the clients that have seen it, in the epoch that begins next.
    pub(crate) fn announce(&mut self, losses: Losses) {
        self.losses = losses;
    }

    /// Continues the numbers of steps' runs behind those of an earlier epoch of this life, whose outcomes may still come. Must be called
    /// before the start.
    pub(crate) fn set_last_run(&mut self, last: StepRun) {
        self.jobs.step_runs.set_last(last);
    }

    /// Returns the number of the last run of a step.
    pub(crate) fn last_run(&self) -> StepRun {
        self.jobs.step_runs.last()
    }

    /// Begins a snapshot of all records that is no part of a checkpoint, in the place of one that runs: drain it with [`Self::drain_snapshot`].
    /// Returns its header without the messages in outboxes, which come with the records. It counts once its position is committed. The
    /// next part of a checkpoint has every record.
    pub fn begin_snapshot(&mut self) -> Box<Header> {
        self.is_full_due = true;
        Box::new(self.state.begin_snapshot(true))
    }

    /// Appends up to `records` more records and messages of the running snapshot to `out`; returns true once it is
    /// complete.
    pub fn drain_snapshot(&mut self, records: usize, out: &mut Piece) -> bool {
        self.state.drain_snapshot(records, out)
    }

    /// Notes that the last life of the process shut down cleanly, so that no waiting cause can have ended it: no attempts
    /// are logged.
    /// Must be called before the start, and only if this is certain.
    pub fn assume_clean(&mut self) {
        self.suspicion.is_on = false;
        self.trust();
    }

    /// Notes that every primary that may have handled something since the last active epoch has outlived it: only causes are
    /// suspected of which the log has attempts, for they may have ended a process before. Must be called only if this is
    /// certain.
    pub(crate) fn trust(&mut self) {
        (self.suspicion.is_wide, self.suspicion.until) = (false, Time(0));
    }

    /// Whether causes are suspected of which the log has no attempts, such as requests that clients repeat.
    pub(crate) fn suspects(&self) -> bool {
        self.suspicion.is_wide && (!self.is_active() || self.clock.steady() < self.suspicion.until)
    }

    /// Makes the next part have every record: it replaces the stored ones of the shard.
    pub fn force_full_snapshot(&mut self) {
        self.is_full_due = true;
    }

    /// Returns the shard's state, including uncommitted entries.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Ends the shard, and returns its state, with uncommitted entries.
    pub(crate) fn into_state(self) -> State {
        self.state
    }

    /// Returns the commit rule of the epoch that it leads.
    pub(crate) fn tracker(&self) -> Option<&CommitTracker> {
        self.replica.as_ref()
    }

    /// Returns the commit index; 0 until the epoch is active.
    #[must_use]
    pub fn commit(&self) -> Index {
        self.replica.as_ref().map_or(Index(0), CommitTracker::commit)
    }

    /// Whether the shard serves.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.replica.as_ref().is_some_and(CommitTracker::is_active)
    }

    /// Whether more may leave than the last input released: a tick, or the same [`Input::Stored`] again, releases more.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.release.is_behind(self.commit(), self.early_upto())
    }

    /// Returns the work of the last input, as counted for [`Settings::work_max`].
    #[must_use]
    pub fn work(&self) -> usize {
        self.work
    }

    /// Returns the bytes of the entries that are not committed.
    #[must_use]
    pub fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// Returns the bytes of the answers that wait for a commit.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        self.release.answer_bytes()
    }

    /// Returns the bytes of the queries that wait until their reads are committed, as counted by [`Reading::weight`].
    #[must_use]
    pub fn query_bytes(&self) -> usize {
        self.release.query_bytes()
    }

    /// Returns the bytes of the outcomes of steps that wait to be handled.
    #[must_use]
    pub fn outcome_bytes(&self) -> usize {
        self.jobs.outcome_bytes
    }

    /// Sets whether the shell lacks memory for more work of clients, which is then refused as overload. False at first.
    pub fn set_crowded(&mut self, is_crowded: bool) {
        self.is_crowded = is_crowded;
    }

    /// Returns the amount of waiting work: messages received but not handled, and the like.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.jobs.len() + self.suspicion.len() + usize::from(self.jobs.starting.is_some())
    }

    /// Returns the shard's clocks at the last input.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    fn note_clock_at(&self) -> Served {
        self.state.position().served().plus(Self::NOTE_CLOCK)
    }

    /// Checks the invariants that hold between two inputs.
    ///
    /// # Errors
    /// The first violated rule.
    pub fn check(&self) -> Result<(), Violation> {
        let shard = self.state.shard();
        let violation = |invariant, what| Err(Violation { invariant, shard, what });
        let index = self.state.position().index;
        if self.commit() > index {
            return violation(2, format!("commit {} is over the last entry {index}", self.commit()));
        }
        if let Err(what) = self.release.check() {
            return violation(5, what);
        }
        if let Err(what) = self.jobs.check(&self.state) {
            return violation(17, what);
        }
        for (to, outbox) in self.state.outboxes().iter() {
            let first = outbox.next.0 - outbox.messages.len() as u64;
            for (seq, message) in (first..).map(Seq).zip(&outbox.messages) {
                if message.seq != seq {
                    return violation(
                        8,
                        format!("message {} to shard {to} where {seq} should be", message.seq),
                    );
                }
            }
        }
        Ok(())
    }

    fn handle_start(&mut self, now: Now, config: EpochConfig, out: &mut Vec<Effect>) {
        // A primary leads for one process life, and a start of an older epoch is an old frame.
        if self.replica.is_some() || config.epoch() <= self.state.position().epoch {
            return;
        }
        self.clock.start(now, self.state.position().index == Index(0));
        self.replica = Some(CommitTracker::new(config, self.state.position().index.next()));
        self.suspicion.began = self.append(Cause::Start, Key::none(), Effects::default(), out);
    }

    /// Handles that the start entry is committed, and with it all entries before it: waiting work begins again.
    fn handle_active(&mut self, epoch: Epoch, out: &mut Vec<Effect>) {
        out.push(Effect::Active(epoch));
        self.mark(self.heard, out);
        self.release.resend_all(&self.state, self.suspicion.is_on, self.clock.steady());
        self.work += self.state.outboxes().iter().count() / Self::LOOKS_AT_ONCE;
        if self.suspicion.is_wide {
            self.suspicion.until = self.clock.steady().plus(self.settings.suspect_for);
        }
        self.begin_starting();
    }

    fn handle_ack(&mut self, from: ShardId, upto: Seq, colour: Colour, out: &mut Vec<Effect>) {
        if !self.is_active() {
            return;
        }
        // Otherwise a cut could have the trim, but not the reception that it stands for.
        self.mark(colour, out);
        let Some(outbox) = self.state.outboxes().get(from) else { return };
        let news = outbox.messages.front().is_some_and(|first| first.seq <= upto) && upto < outbox.next;
        if news {
            let trim = self.trims.entry(from).or_default();
            *trim = upto.max(*trim);
            self.trim_at.get_or_insert(self.clock.steady().plus(self.settings.ack_delay));
            self.release.progress(from, self.clock.steady());
        }
    }

    fn handle_tick(&mut self, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        if !self.is_active() {
            return;
        }
        if !self.full {
            if self.trim_at.is_some_and(|at| at <= self.clock.steady()) {
                self.trim(out);
            }
            self.expire(out);
            if self.work < self.settings.work_max {
                self.confirm(out);
            }
        }
        self.let_go(out);
        self.work += self.release.tick(&self.state, self.clock.steady(), &self.settings, out);
        self.push_due_timers();
        self.run_due_steps();
        self.run_jobs(handler, out);
    }

    fn note_commit(&mut self) {
        let commit = self.commit();
        while let Some((_, bytes)) = self.uncommitted.pop_front_if(|(index, _)| *index <= commit) {
            self.uncommitted_bytes -= bytes;
        }
        shrink::release_spare(&mut self.uncommitted);
        if let Some(early) = &mut self.early {
            early.backlog.handle_commit(commit);
        }
    }

    /// Releases committed effects, within the limit of one input.
    fn let_go(&mut self, out: &mut Vec<Effect>) {
        let room = self.settings.work_max.saturating_sub(self.work);
        let (commit, early) = (self.commit(), self.early_upto());
        let step_runs = &mut self.jobs.step_runs;
        self.work += self.release.commit(
            commit,
            early,
            &self.state,
            &self.clock,
            &self.settings,
            step_runs,
            room,
            out,
        );
    }

    /// Logs the acknowledgements of receivers, within the limit of one input.
    fn trim(&mut self, out: &mut Vec<Effect>) {
        let mut room = self.settings.work_max as u64;
        let mut trims = Vec::new();
        while room > 0
            && trims.len() < Self::TRIM_BATCH
            && let Some((to, upto)) = self.trims.pop_first()
        {
            let first = self.state.outboxes().get(to).and_then(|outbox| outbox.messages.front());
            let Some(first) = first.map(|first| first.seq).filter(|first| *first <= upto) else { continue };
            let part = upto.min(Seq(first.0 + room - 1));
            room -= part.0 + 1 - first.0;
            if part < upto {
                self.trims.insert(to, upto);
            }
            trims.push(Trim { to, upto: part });
        }
        self.trim_at = self.trim_at.filter(|_| !self.trims.is_empty());
        if !trims.is_empty() {
            self.append(Cause::Ack { trims }, Key::none(), Effects::default(), out);
        }
    }

    /// Deletes further replies that a client has, if one entry could not delete all of them.
    fn confirm(&mut self, out: &mut Vec<Effect>) {
        let Some((id, upto)) = self.confirms.pop_first() else { return };
        let key = RecordKey::session(id);
        let Some(mut record) = self.state.record::<SessionRecord>(&key) else { return };
        let highest = self.state.session(id).map_or(0, |open| open.highest.0);
        let mut writes: Vec<Write> = Vec::new();
        let mut room = self.settings.entry_bytes_max;
        let mut looks = self.confirm_batch();
        while record.confirmed < upto && looks > 0 && room > 0 {
            looks -= 1;
            record.confirmed = record.confirmed.next();
            if record.confirmed.0 > highest {
                record.confirmed = upto;
                break;
            }
            let key = RecordKey::reply(id, record.confirmed);
            if self.state.records().get(key.as_bytes()).is_some() {
                let write = Write { key, value: None };
                room = room.saturating_sub(write_weight(&write));
                writes.push(write);
            }
        }
        self.work += (self.confirm_batch() - looks) as usize;
        if record.confirmed < upto {
            self.confirms.insert(id, upto);
        }
        writes.push(Write { key, value: Some(encode_value(&record)) });
        self.append(Cause::Expire, Key::none(), Effects::of(writes), out);
    }

    /// Returns the maximum number of confirmed replies that one entry deletes.
    fn confirm_batch(&self) -> u64 {
        Self::EXPIRE_BATCH.min(self.settings.work_max).max(State::CONFIRM_STEP as usize) as u64
    }

    /// Deletes expired records. A session is deleted with its last replies, by the last of the entries that delete
    /// these.
    fn expire(&mut self, out: &mut Vec<Effect>) {
        let served = self.clock.served();
        let mut writes: Vec<Write> = Vec::new();
        let mut room = self.settings.entry_bytes_max;
        let looks_max = Self::EXPIRE_BATCH.min(self.settings.work_max);
        let mut looks = 0..looks_max;
        let mut expiring = self.expiring.take();
        let mut forget = |key: RecordKey, writes: &mut Vec<Write>| {
            let write = Write { key, value: None };
            room = room.saturating_sub(write_weight(&write));
            writes.push(write);
            room > 0
        };
        'over: for (_, key) in self.state.expiries().iter().take_while(|(at, _)| *at <= served) {
            let id = key.session_id();
            let session = id.and_then(|id| self.state.session(id));
            let (confirmed, last) = session.map_or((0, 0), |open| (open.confirmed.0, open.highest.0));
            let begun = expiring.take().filter(|(begun, _)| Some(*begun) == id);
            // The last number stands for the record of the session or key itself.
            for number in begun.map_or(confirmed + 1, |(_, number)| number)..=last + 1 {
                if looks.next().is_none() {
                    self.expiring = id.map(|id| (id, number));
                    break 'over;
                }
                let key = match id {
                    Some(id) if number <= last => RecordKey::reply(id, RequestNumber(number)),
                    _ => key.clone(),
                };
                if self.state.records().get(key.as_bytes()).is_some() && !forget(key, &mut writes) {
                    self.expiring = id.map(|id| (id, number + 1));
                    break 'over;
                }
            }
        }
        self.work += looks_max - looks.len();
        if !writes.is_empty() || self.note_clock_at() <= served {
            self.append(Cause::Expire, Key::none(), Effects::of(writes), out);
        }
    }

    /// Takes the shard's part of checkpoint `colour`, unless it is taken already.
    fn mark(&mut self, colour: Colour, out: &mut Vec<Effect>) {
        if !self.is_active() {
            self.heard = self.heard.max(colour);
            return;
        }
        if colour <= self.state.position().colour {
            return;
        }
        let index = self.append(Cause::Marker { colour }, Key::none(), Effects::default(), out);
        // A checkpoint that is not known to exist may have been given up: the chain of parts ends there. A snapshot
        // that still runs belongs to such a checkpoint, or to one whose number came with a message from before it was
        // given up.
        let all =
            std::mem::take(&mut self.is_full_due) || self.unconfirmed.is_some() || self.state.snapshot_runs();
        let header = Box::new(self.state.begin_snapshot(all));
        self.work += (header.outboxes.len() + header.received.len()) / Self::LOOKS_AT_ONCE;
        self.unconfirmed = Some(colour);
        out.push(Effect::Marked { header, all });
        self.release.hold_marker(index, colour);
    }

    /// Runs the handler for one cause and appends its entry.
    fn execute(
        &mut self,
        invocation: &Invocation<'_>,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), Failure> {
        let Invocation { cause, process, caller, payload, kept } = invocation;
        let place = self.state.position().index.next();
        let epoch = self.epoch();
        let call = Call {
            service: self.service,
            key: process,
            caller: *caller,
            payload,
            time: self.clock.time(),
            place: (epoch, place),
        };
        self.work += 1;
        let mut txn = Txn::new(&self.state, &self.topology, &call);
        let reply = match handler.handle(&call, &mut txn) {
            Outcome::Replied(reply) => reply,
            Outcome::Refused(misuse) => return Err(Failure::Refused(misuse)),
            Outcome::Panicked(why) => return Err(Failure::Panicked(why)),
        };
        let (mut writes, sends) = match &reply {
            Reply::Ok(_) => txn.into_effects(),
            Reply::Err(_) => Default::default(),
        };
        writes.extend(kept.iter().cloned());
        // No client waits for the reply to a cause that waited in the system.
        let answer = cause.pending().is_none().then(|| reply.clone());
        let effects = Effects { writes, sends, reply: answer };
        let (len, max) = (effects.weight(), self.settings.entry_bytes_max);
        if len > max {
            return Err(Failure::Refused(Misuse::TooLarge { len, max }));
        }
        let index = self.append(cause.clone(), (*process).clone(), effects, out);
        Ok((index, reply))
    }

    /// Creates an entry, gives it to the log, folds it into the state and notes the effects to release once it is
    /// committed.
    fn append(&mut self, cause: Cause, process: Key, effects: Effects, out: &mut Vec<Effect>) -> Index {
        let Effects { writes, sends, reply } = effects;
        let index = self.state.position().index.next();
        let epoch = self.epoch();
        let time = self.clock.time();
        let served = Some(self.clock.served().since(self.state.position().served()));
        let entry = Entry { index, epoch, time, cause, process, writes, sends, reply, served };
        let mut bytes = Vec::with_capacity(192);
        entry.encode_into(&mut bytes);
        self.work += 1 + bytes.len() / Self::WORK_BYTES;
        self.uncommitted.push_back((index, bytes.len()));
        self.uncommitted_bytes += bytes.len();
        if let Some(early) = &mut self.early {
            early.backlog.handle_appended(self.clock.steady(), index);
        }
        out.push(Effect::Append { epoch, index, bytes });
        self.release.hold(&entry, self.state.shard());
        self.jobs.note_local(&entry, self.state.shard());
        self.jobs.note_timers(&entry, &self.state);
        self.jobs.note_tasks(&entry, &self.state);
        if let Some(id) = self.suspicion.task
            && entry.writes.iter().any(|write| write.key == RecordKey::task(id))
        {
            self.suspicion.steps.tried = Some(index);
        }
        let folded = self.state.folded();
        self.state.apply(entry).expect("an entry that the shard made follows from its state");
        self.work += (self.state.folded() - folded) as usize;
        index
    }

    fn epoch(&self) -> Epoch {
        self.replica.as_ref().expect("entries are made by the primary of an epoch").config().epoch()
    }

    /// Whether no new work may be handled now, for lack of space or because the log is behind.
    fn blocked(&self) -> bool {
        self.full
            || self.uncommitted_bytes >= self.settings.uncommitted_bytes_max
            || self.state.position().index.0 - self.commit().0 >= self.settings.uncommitted_max
    }
}

/// One execution of a handler, for a cause.
struct Invocation<'a> {
    cause: Cause,
    process: &'a Key,
    caller: Caller<'a>,
    payload: &'a [u8],
    /// Writes that apply even if the handler returns an error.
    kept: Vec<Write>,
}

/// Maximum number of bytes that the encoding of a message adds to its key and payload.
const SEND_WEIGHT: usize = 16;

/// Returns the approximate number of bytes of a write in the log.
fn write_weight(write: &Write) -> usize {
    write.key.as_bytes().len() + write.value.as_ref().map_or(0, |value| value.len()) + 16
}

/// The effects of an entry besides those that follow from its cause.
#[derive(Default)]
struct Effects {
    writes: Vec<Write>,
    sends: Vec<Send>,
    reply: Option<Reply>,
}

impl Effects {
    fn of(writes: Vec<Write>) -> Self {
        Self { writes, ..Self::default() }
    }

    /// Returns their approximate number of bytes in the log.
    fn weight(&self) -> usize {
        let sends = self.sends.iter().map(|send| send.process.len() + send.payload.len() + SEND_WEIGHT);
        let reply = self.reply.as_ref().map_or(0, |(Reply::Ok(reply) | Reply::Err(reply))| reply.len());
        self.writes.iter().map(write_weight).chain(sends).sum::<usize>() + reply
    }
}

/// Reasons for which a handler made no entry.
enum Failure {
    Refused(Misuse),
    Panicked(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;
    use crate::calls::Answer;
    use crate::ids::{CallToken, Incarnation, ReplicaId};

    /// Returns a shard without an entry, and with this commit index.
    fn shard(commit: u64) -> Shard {
        let mut topology = Topology::new(Incarnation(1));
        topology.ensure("a", 1).unwrap();
        let mut shard = Shard::new(State::new(ShardId(0)), Arc::new(topology), Settings::default());
        if commit > 0 {
            let mut replica =
                CommitTracker::new(EpochConfig::single(Epoch(1), ReplicaId::FIRST), Index(commit));
            replica.handle_stored(ReplicaId::FIRST, Index(commit));
            shard.replica = Some(replica);
        }
        shard
    }

    fn answer(index: u64) -> Effect {
        let (token, epoch, index, colour) = (CallToken(1), Epoch(0), Index(index), Colour(0));
        let result = Ok(Reply::Ok(Blob::empty()));
        Effect::Answer(Answer { token, epoch, index, colour, result, staleness: None })
    }

    #[test]
    fn what_is_committed_may_leave() {
        shard(0).assert_edge(Epoch(0), Index(0), &[answer(0)]);
    }

    #[test]
    #[should_panic(expected = "the epoch falls from 1")]
    fn the_epoch_never_falls() {
        shard(0).assert_edge(Epoch(1), Index(0), &[]);
    }

    #[test]
    #[should_panic(expected = "the commit index falls from 1")]
    fn the_commit_index_never_falls() {
        shard(0).assert_edge(Epoch(0), Index(1), &[]);
    }

    #[test]
    #[should_panic(expected = "commits 5 of 0 entries")]
    fn no_more_is_committed_than_there_is() {
        shard(5).assert_edge(Epoch(0), Index(0), &[]);
    }

    #[test]
    #[should_panic(expected = "appends an entry of another epoch")]
    fn an_entry_is_of_the_epoch_that_is_led() {
        let append = Effect::Append { epoch: Epoch(1), index: Index(1), bytes: Vec::new() };
        shard(0).assert_edge(Epoch(0), Index(0), &[append]);
    }

    #[test]
    #[should_panic(expected = "entry 1 shows before it is committed")]
    fn no_answer_leaves_over_the_commit_index() {
        shard(0).assert_edge(Epoch(0), Index(0), &[answer(0), answer(1)]);
    }
}
