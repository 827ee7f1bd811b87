//! Clients: sessions, requests and their retries, queries.

use super::{Effect, Effects, Failure, Invocation, Shard};
use crate::blob::Blob;
use crate::calls::{Answer, Caller, Identity, Limited, Lost, Query, Read, Refusal, Request};
use crate::capture::{Capture, Reading};
use crate::entry::Cause;
use crate::handler::{Handler, QueryPlace};
use crate::ids::{CallToken, Index, RequestNumber, SessionId};
use crate::key::Key;
use crate::record::{AttemptRecord, IdempotencyRecord, Pending, RecordKey};
use crate::replication::table::LogPoint;
use crate::reply::Reply;
use crate::state::State;
use std::time::Duration;

impl Shard {
    /// Time after which a client should retry that was refused because of kept state, which expires slowly.
    const RETRY_KEPT_AFTER: Duration = Duration::from_secs(60);

    pub(super) fn handle_open_session(
        &mut self,
        token: CallToken,
        session: SessionId,
        principal: &str,
        out: &mut Vec<Effect>,
    ) {
        let opened = self.admit(principal).and_then(|()| {
            if let Some(open) = self.state.session(session) {
                if *open.principal != *principal || open.expires <= self.clock.served() {
                    return Err(Refusal::UnknownSession(session));
                }
                return Ok((self.state.position().index, Reply::Ok(Blob::empty())));
            }
            let max = self.settings.sessions_max;
            within(Limited::Sessions, self.state.sessions(), max)?;
            within(Limited::SessionsOfPrincipal, self.state.kept_for(principal).sessions, max / 2)?;
            let ttl = self.settings.session_ttl;
            let cause = Cause::OpenSession { session, principal: principal.to_owned(), ttl };
            let index = self.append(cause, Key::none(), Effects::default(), out);
            Ok((index, Reply::Ok(Blob::empty())))
        });
        self.answer(token, opened, out);
    }

    pub(super) fn handle_request(
        &mut self,
        request: Request,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) {
        match self.suspect(&request) {
            Some(suspect) if self.jobs.takes_suspect(&suspect, self.settings.outbox_bytes_max) => {
                self.jobs.push_suspect(request, suspect);
            }
            Some(_) => {
                let retry_after = Self::RETRY_AFTER;
                self.answer(request.token, Err(Refusal::Overloaded { retry_after }), out);
            }
            None => {
                self.run_request(&request, handler, out);
            }
        }
    }

    /// Returns the waiting cause for a request that may have ended the process: it is handled only after an attempt is
    /// logged.
    fn suspect(&self, request: &Request) -> Option<Pending> {
        let may_be_any = !request.is_first && self.clock.steady() < self.suspicion.until;
        if !self.is_active() || !may_be_any && !self.state.has_begun_requests() {
            return None;
        }
        let suspect = self.suspect_of(request);
        // A met cause may have ended the process, however late its client repeats it.
        if !may_be_any && !self.has_begun(&suspect) {
            return None;
        }
        // Only a request that would be handled needs an attempt.
        let new = self.check_seen(request.seen).is_ok()
            && matches!(self.known_reply(request), Ok(None))
            && self.admit_request(request).is_ok()
            && self.check_poison(&suspect).is_ok();
        (new && !self.jobs.survived(&suspect)).then_some(suspect)
    }

    /// Returns the identity of a request that comes again after it has ended the process.
    fn suspect_of(&self, request: &Request) -> Pending {
        match self.cause(request).identity(&request.process) {
            Some(identity) => Pending::Request { identity },
            None => Pending::call(&request.process, &request.principal, &request.payload),
        }
    }

    /// Handles a request; returns false if it was refused before it could be handled.
    pub(super) fn run_request(
        &mut self,
        request: &Request,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> bool {
        let result = self.request(request, handler, out);
        let early = |refusal: &Refusal| {
            matches!(refusal, Refusal::NotReady | Refusal::Full | Refusal::Overloaded { .. })
        };
        let reached = !result.as_ref().is_err_and(early);
        self.answer(request.token, result, out);
        reached
    }

    fn request(
        &mut self,
        request: &Request,
        handler: &mut dyn Handler,
        out: &mut Vec<Effect>,
    ) -> Result<(Index, Reply), Refusal> {
        if !self.is_active() {
            return Err(Refusal::NotReady);
        }
        self.check_seen(request.seen)?;
        let known = self.known_reply(request);
        if let (Err(Refusal::Overloaded { .. }), Identity::Session { session, confirmed, .. }) =
            (&known, &request.identity)
        {
            let highest = self.state.session(*session).map_or(RequestNumber(0), |open| open.highest);
            self.note_confirmed(*session, highest.min(*confirmed));
        }
        if let Some(reply) = known? {
            self.admit_answer()?;
            return Ok((self.state.position().index, reply));
        }
        self.admit_request(request)?;
        let mut cause = self.cause(request);
        if self.state.has_begun_requests() {
            let suspect = self.suspect_of(request);
            self.check_poison(&suspect)?;
            if let Pending::Call { content } = suspect
                && self.has_begun(&suspect)
            {
                cause = Cause::Suspected { content };
            }
        }
        // The client has seen state after that checkpoint.
        self.mark(request.colour, out);
        let caller = Caller::Client { principal: &request.principal };
        let process = &request.process;
        let invocation = Invocation { cause, process, caller, payload: &request.payload, kept: Vec::new() };
        let done = self.execute(&invocation, handler, out).map_err(|failure| match failure {
            Failure::Refused(misuse) => Refusal::Misuse(misuse),
            Failure::Panicked(why) => Refusal::Panicked(why),
        })?;
        if let Identity::Session { session, confirmed, .. } = request.identity {
            self.note_confirmed(session, confirmed);
        }
        Ok(done)
    }

    /// Returns the last reply that the entry of a request may delete, of those that its client confirms.
    fn confirmed_at_once(&self, session: SessionId, confirmed: RequestNumber) -> RequestNumber {
        let base = self.state.session(session).map_or(0, |open| open.confirmed.0);
        confirmed.min(RequestNumber(base.saturating_add(self.confirm_batch())))
    }

    /// Leaves confirmed replies that the entry of a request did not delete to the next ticks. A crash may forget this:
    /// the client confirms them again.
    fn note_confirmed(&mut self, session: SessionId, confirmed: RequestNumber) {
        let Some(open) = self.state.session(session) else { return };
        if confirmed.0.saturating_sub(open.confirmed.0) >= State::CONFIRM_STEP {
            let upto = self.confirms.entry(session).or_default();
            *upto = confirmed.max(*upto);
        }
    }

    fn cause(&self, request: &Request) -> Cause {
        match &request.identity {
            Identity::Session { session, number, confirmed } => Cause::Request {
                session: *session,
                number: *number,
                confirmed: self.confirmed_at_once(*session, *confirmed),
                ttl: self.settings.session_ttl,
            },
            Identity::Idempotency { key, body_hash } => Cause::Idempotent {
                principal: request.principal.to_string(),
                key: key.clone(),
                body_hash: *body_hash,
                expires: self.clock.served().plus(self.settings.idempotency_ttl),
            },
            Identity::None => Cause::Anonymous,
        }
    }

    /// Refuses a request that was given up.
    fn check_poison(&self, suspect: &Pending) -> Result<(), Refusal> {
        let attempts = self.settings.attempts_max;
        let is_given_up = self.attempts(suspect) == AttemptRecord::GIVEN_UP;
        if is_given_up { Err(Refusal::Poisoned { attempts }) } else { Ok(()) }
    }

    /// Returns the reply to a request that was handled before.
    fn known_reply(&self, request: &Request) -> Result<Option<Reply>, Refusal> {
        match &request.identity {
            Identity::None => Ok(None),
            Identity::Session { session, number, confirmed } => {
                // An expired session is gone, although its record is deleted last: its replies are deleted first, over
                // several entries.
                let open = self.state.session(*session).filter(|open| open.expires > self.clock.served());
                // Other clients must not learn that there is such a session.
                let Some(open) = open.filter(|open| open.principal == request.principal) else {
                    // If the client cannot be admitted, it could not have opened a session, and opening another one
                    // does not help.
                    self.admit(&request.principal)?;
                    return Err(Refusal::UnknownSession(*session));
                };
                // Some confirmed replies may not be deleted yet.
                let before = self.confirms.get(session).copied().unwrap_or_default().max(open.confirmed);
                if *number <= before {
                    return Err(Refusal::Confirmed(*number));
                }
                if let Some(reply) = self.state.record(&RecordKey::reply(*session, *number)) {
                    return Ok(Some(reply));
                }
                let (base, window) = (before.max(*confirmed), Self::SESSION_WINDOW);
                if confirmed >= number || number.0 - base.0 > window {
                    return Err(Refusal::Window { number: *number, confirmed: base, window });
                }
                if number.0 - before.0 > window {
                    // A crash forgot some of the confirmations: the next ticks continue.
                    return Err(Refusal::Overloaded { retry_after: Self::RETRY_AFTER });
                }
                Ok(None)
            }
            Identity::Idempotency { key, body_hash } => {
                check_len("an idempotency key", key.len(), Self::IDEMPOTENCY_KEY_MAX)?;
                check_len("a principal", request.principal.len(), Self::PRINCIPAL_MAX)?;
                let key = RecordKey::idempotency(&request.process, &request.principal, key);
                let Some(known) = self.state.record::<IdempotencyRecord>(&key) else { return Ok(None) };
                if known.body_hash != *body_hash {
                    return Err(Refusal::IdempotencyConflict);
                }
                Ok(Some(known.reply))
            }
        }
    }

    fn admit_request(&self, request: &Request) -> Result<(), Refusal> {
        self.admit(&request.principal)?;
        let (len, max) = (request.payload.len(), self.settings.entry_bytes_max);
        if len > max {
            return Err(Refusal::RequestTooLarge { len, max });
        }
        let (kept, settings) = (self.state.kept(), &self.settings);
        within(Limited::DeadLetters, kept.dead_letters, settings.dead_letter_bytes_max)?;
        within(Limited::Waiting, kept.waiting, settings.waiting_bytes_max)?;
        let keeps = match &request.identity {
            Identity::None => false,
            Identity::Idempotency { .. } => true,
            // A session that confirms replies frees space as it continues, and must be admitted for that.
            Identity::Session { session, confirmed, .. } => self
                .state
                .session(*session)
                .is_none_or(|open| open.kept >= State::SESSION_KEPT && *confirmed <= open.confirmed),
        };
        if keeps {
            let of = self.state.kept_for(&request.principal);
            within(Limited::Replies, kept.replies, settings.kept_bytes_max)?;
            within(Limited::RepliesOfPrincipal, of.replies, settings.kept_bytes_max / 2)?;
        }
        Ok(())
    }

    /// Refuses a client that has seen what is lost. Must be asked while the epoch is active.
    fn check_seen(&self, seen: Option<LogPoint>) -> Result<(), Refusal> {
        let Some((seen, kept)) = seen.and_then(|seen| Some((seen, self.losses.kept_before(seen)?))) else {
            return Ok(());
        };
        let (shard, position) = (self.state.shard(), self.state.position());
        let service = self.topology.service(self.service).name.clone();
        let now = LogPoint { epoch: position.epoch, index: position.index };
        Err(Box::new(Lost { shard, service, seen, kept, now }).into())
    }

    /// Admission control of clients: internal messages never wait for space.
    pub(super) fn admit(&self, principal: &str) -> Result<(), Refusal> {
        if !self.is_active() {
            return Err(Refusal::NotReady);
        }
        if self.full {
            return Err(Refusal::Full);
        }
        if self.suspicion.held {
            return Err(Refusal::NotReady);
        }
        if self.blocked() || self.is_crowded || self.state.outbox_bytes() > self.settings.outbox_bytes_max {
            return Err(Refusal::Overloaded { retry_after: Self::RETRY_AFTER });
        }
        self.check_lag()?;
        check_len("a principal", principal.len(), Self::PRINCIPAL_MAX)
    }

    /// Returns the refusal of a call that saw nothing of the state.
    pub(crate) fn refuse(&self, token: CallToken, refusal: Refusal) -> Answer {
        let (epoch, colour) = (self.state.position().epoch, self.release.colour());
        Answer { token, epoch, index: Index(0), colour, result: Err(refusal), staleness: None }
    }

    /// Refuses an answer without an entry of its own if too many of them wait for the log, or too many queries have
    /// pending answers.
    pub(super) fn admit_answer(&self) -> Result<(), Refusal> {
        let waiting = self.release.answer_bytes() + self.release.query_bytes();
        let is_full = waiting >= self.settings.uncommitted_bytes_max;
        if is_full { Err(Refusal::Overloaded { retry_after: Self::RETRY_AFTER }) } else { Ok(()) }
    }

    /// Captures the process for the query, and continues: only brief code runs here.
    pub(super) fn handle_query(&mut self, query: Query, handler: &mut dyn Handler, out: &mut Vec<Effect>) {
        // It is user code too, and may end the process beside a trial.
        if !self.is_active() || self.suspicion.held {
            return self.answer(query.token, Err(Refusal::NotReady), out);
        }
        // A stale read promises no more than its age.
        let seen = query.seen.filter(|_| !matches!(query.read, Read::Stale { .. }));
        if let Err(refusal) = self.check_seen(seen).and_then(|()| self.admit_answer()) {
            return self.answer(query.token, Err(refusal), out);
        }
        let (service, time, epoch, position) =
            (self.service, self.clock.time(), self.epoch(), self.state.position());
        let state = self.state.records().get(RecordKey::process(&query.process).as_bytes());
        let place = match handler.place_query(&query.call(service, time, (epoch, position.index)), state) {
            Err(refusal) => return self.answer(query.token, Err(refusal), out),
            Ok(place) => place,
        };
        let capture = Capture::with(&self.state, &query.process, state);
        let (index, colour, is_early) = (position.index, position.colour, self.are_reads_leased());
        let staleness = matches!(query.read, Read::Stale { .. }).then_some(self.staleness);
        let reading = Reading { query, service, time, epoch, index, colour, staleness, capture };
        match place {
            QueryPlace::Here => {
                let answer = reading.answer(|call, view| handler.query(call, view));
                self.leave(answer, is_early, out);
            }
            QueryPlace::Apart if self.may_leave(reading.index, is_early) => {
                out.push(Effect::Query(Box::new(reading)));
            }
            QueryPlace::Apart => self.release.hold_query(Box::new(reading), is_early),
        }
    }

    /// Answers once all that the answer includes is committed, or stored by W members while the primary's lease holds.
    pub(super) fn answer(
        &mut self,
        token: CallToken,
        result: Result<(Index, Reply), Refusal>,
        out: &mut Vec<Effect>,
    ) {
        let position = self.state.position();
        let (index, result) = match result {
            Ok((index, reply)) => (index, Ok(reply)),
            Err(refusal) if refusal.saw_state() => (position.index, Err(refusal)),
            Err(refusal) => (Index(0), Err(refusal)),
        };
        let colour = if index == Index(0) { self.release.colour() } else { position.colour };
        // An answer that saw nothing waits for nothing.
        let is_early = self.early.is_some() && index > Index(0);
        let answer = Answer { token, epoch: position.epoch, index, colour, result, staleness: None };
        self.leave(answer, is_early, out);
    }

    fn leave(&mut self, answer: Answer, is_early: bool, out: &mut Vec<Effect>) {
        if self.may_leave(answer.index, is_early) {
            out.push(Effect::Answer(answer));
        } else {
            self.release.hold_answer(answer, is_early);
        }
    }

    /// Whether an answer may leave now that saw the entries up to an index.
    fn may_leave(&self, index: Index, is_early: bool) -> bool {
        if is_early { self.early_upto().is_some_and(|upto| index <= upto) } else { index <= self.commit() }
    }
}

/// Refuses to add to state that has reached its limit.
fn within(what: Limited, used: usize, max: usize) -> Result<(), Refusal> {
    let retry_after = Shard::RETRY_KEPT_AFTER;
    if used >= max { Err(Refusal::LimitReached { what, max, retry_after }) } else { Ok(()) }
}

fn check_len(what: &'static str, len: usize, max: usize) -> Result<(), Refusal> {
    if len > max { Err(Refusal::TooLong { what, len, max }) } else { Ok(()) }
}
