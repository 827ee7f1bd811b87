//! Effects that must happen by themselves: a timer fires once it is due, a session and a key end once they have
//! expired, and not before.

use super::Model;
use crate::violation::Violation;
use std::collections::BTreeMap;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{Index, Served, SessionId, ShardId, Time, TimerId};
use stead_core::record::{Kind, RecordKey, SessionRecord, decode_value};

/// Longest time for which a shard that may work leaves due work undone, in microseconds of virtual time: 2 s. The
/// slowest disk and channel of a profile take a tenth of that.
pub(crate) const LATE_MAX: u64 = 2_000_000;

/// The due work of a shard, with the time since which the model knows it.
#[derive(Default)]
pub(super) struct Due {
    timer: Option<((Time, TimerId), u64)>,
    expiry: Option<((Served, RecordKey), u64)>,
}

/// The sessions of a shard by the uses that the model saw, not by their records.
#[derive(Default)]
pub(super) struct Sessions {
    /// By session, the entry that opened it.
    opened: BTreeMap<SessionId, Index>,
    /// By session, the served time of its last use.
    used: BTreeMap<SessionId, Served>,
}

/// Returns the time since which the first due item is known.
fn since<T: Clone + PartialEq>(known: &mut Option<(T, u64)>, first: Option<&T>, now: u64) -> Option<u64> {
    match (first, &known) {
        (Some(first), Some((before, since))) if first == before => return Some(*since),
        (first, _) => *known = first.map(|first| (first.clone(), now)),
    }
    first.map(|_| now)
}

impl Model {
    /// Checks that nothing is overdue at a shard that has worked without a stop since some virtual time. `right` is the wall
    /// clock's time, if it was never wrong: then it is the shard's.
    pub(crate) fn check_due(
        &mut self,
        shard: ShardId,
        (now, right): (u64, Option<Time>),
        works_since: u64,
    ) -> Result<(), Violation> {
        let shadow = self.shadow(shard);
        let position = shadow.fold.position();
        let (time, served) = (right.unwrap_or(position.time), position.served());
        let timer = shadow.fold.timers().first().filter(|(at, _)| *at <= time);
        let expiry = shadow.fold.expiries().first().filter(|(at, _)| *at <= served);
        let is_late =
            |since: Option<u64>| since.is_some_and(|s| now.saturating_sub(s.max(works_since)) > LATE_MAX);
        let seen = since(&mut shadow.due.timer, timer, now);
        // A clock that was never wrong determines when it became due, whenever the model looks.
        let due = right.and_then(|right| Some(now.saturating_sub(right.0 - timer?.0.0)));
        if let Some((at, id)) = timer.filter(|_| is_late(due.or(seen))) {
            let what =
                format!("shard {shard}: timer {id} is due at {at:?}, and has not fired for {LATE_MAX} µs");
            return Err(Violation::new(17, what));
        }
        let seen = since(&mut shadow.due.expiry, expiry, now);
        if let Some((at, key)) = expiry.filter(|_| is_late(seen)) {
            let what = format!("shard {shard}: {key:?} ran out at {at:?}, and is kept for {LATE_MAX} µs");
            return Err(Violation::new(17, what));
        }
        Ok(())
    }

    /// Compares an entry's effect on sessions with their use. The entry is not folded yet.
    pub(super) fn check_sessions(&mut self, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let shadow = self.shadow(shard);
        let session_life = shadow.session_life;
        let index = entry.index;
        let bad = |what: String| Err(Violation::new(7, format!("shard {shard}: entry {index} {what}")));
        let served = shadow.fold.position().served().plus(entry.served.unwrap_or_default());
        if let Cause::OpenSession { session, ttl, .. } | Cause::Request { session, ttl, .. } = &entry.cause {
            if *ttl != session_life {
                return bad(format!("lets session {session} live for {ttl}, which is {session_life}"));
            }
            shadow.sessions.used.insert(*session, served);
        }
        if let Cause::OpenSession { session, .. } = &entry.cause {
            shadow.sessions.opened.insert(*session, index);
        }
        for write in entry.writes.iter().filter(|write| write.key.kind() == Kind::Session) {
            let Some(id) = write.key.session_id() else { continue };
            let Some(value) = &write.value else {
                // A use counts from half of the life on.
                let used = shadow.sessions.used.remove(&id).unwrap_or_default();
                if used.plus(session_life.half()) > served {
                    return bad(format!("ends session {id} at {served:?}, which was used at {used:?}"));
                }
                continue;
            };
            let (before, after) = (shadow.fold.session(id), decode_value::<SessionRecord>(value).ok());
            if before.as_ref().map(|record| record.expires) != after.as_ref().map(|record| record.expires) {
                return bad(format!("makes session {id} {after:?}, which was {before:?}"));
            }
        }
        Ok(())
    }

    /// Compares the answer to the opening of a session, which names an entry, with the entry that opened it.
    pub(crate) fn check_opened(
        &self,
        shard: ShardId,
        session: SessionId,
        seen: Index,
    ) -> Result<(), Violation> {
        let opened = self.shards[shard.0 as usize].sessions.opened.get(&session);
        if opened.is_some_and(|opened| *opened <= seen) {
            return Ok(());
        }
        let what = format!(
            "shard {shard}: session {session} is open by entry {seen}, as its client hears, and was opened by {opened:?}"
        );
        Err(Violation::new(5, what))
    }
}
