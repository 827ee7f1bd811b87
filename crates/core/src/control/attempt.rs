//! An attempt to begin an epoch: the seals that are asked for, and the choice of members and primary once they suffice.

use super::ControlState;
use super::failover::Cause;
use super::health::Health;
use super::node::NodeRecord;
use super::placement::Loads;
use super::settings::Settings;
use super::shard::ShardRecord;
use crate::clock::Now;
use crate::commit_tracker::EpochConfig;
use crate::ids::{Epoch, Life, Micros, NodeId, ReplicaId, ShardId, Time};
use crate::replication::epoch::{EpochRecord, SealAnswer};
use crate::replication::history::{Judgement, Takeover, TakeoverError};
use crate::replication::lease::granted_until;
use crate::replication::table::LogPoint;
use std::collections::{BTreeMap, BTreeSet};

/// The change that an attempt is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) cause: Cause,
    /// The members; `None` for those of the newest epoch.
    pub(super) members: Option<Vec<ReplicaId>>,
    /// The primary; `None` for the best one.
    pub(super) primary: Option<ReplicaId>,
    /// An operator wants to go on with too few members.
    pub(super) is_forced: bool,
}

impl Wish {
    /// The same members under a primary that is there.
    pub(super) fn of(cause: Cause) -> Self {
        Self { cause, members: None, primary: None, is_forced: false }
    }
}

/// The replicas that an epoch's members are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Those that the change is for; until an epoch is active, those of them that were members of the last active one (rule 12).
    Wish,
    /// The members that there are, the change given up for now; until an epoch is active, those of the last active one.
    Present,
    /// The members of the newest epoch that names the replica with the best log: no member of the last active one has that log, and
    /// without it too few are sealed. The seals needed spread over no more nodes than before.
    Winner,
    /// All that answered: an operator gives up the others, or the dial.
    Answers,
}

/// An attempt. It cannot be given up once a seal was asked for: the sealed members take part in nothing older (rule 8).
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) wish: Wish,
    pub(super) epoch: Epoch,
    /// The wall clock when the reason was noticed.
    pub(super) noticed: Time,
    /// It goes on without members that are gone for long.
    pub(super) drops_gone: bool,
    began: Time,
    asked: Option<Time>,
    answers: BTreeMap<ReplicaId, SealAnswer>,
}

/// The state and the nodes as they are at one time.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) now: Now,
    pub(super) settings: &'a Settings,
    pub(super) state: &'a ControlState,
    pub(super) health: &'a Health,
}

impl View<'_> {
    /// Returns the node of a replica that may take part.
    pub(super) fn node_of(&self, shard: &ShardRecord, replica: ReplicaId) -> Option<NodeId> {
        let placed = shard.replicas().get(&replica)?;
        self.state.is_usable(placed).then_some(placed.node)
    }

    /// Returns the record of that node.
    pub(super) fn node_record_of(&self, shard: &ShardRecord, replica: ReplicaId) -> Option<&NodeRecord> {
        self.node_of(shard, replica).and_then(|node| self.state.nodes().get(&node))
    }

    /// Whether a message that was last sent at this time, if ever, is to be sent again.
    pub(super) fn is_due(&self, sent: Option<Time>) -> bool {
        sent.is_none_or(|at| self.now.steady.since(at) >= self.settings.send_again)
    }

    /// Whether a replica may take part, on a node that has not failed.
    pub(super) fn is_well(&self, shard: &ShardRecord, replica: ReplicaId) -> bool {
        self.node_of(shard, replica).is_some_and(|node| self.health.is_well(node))
    }

    /// Whether a replica whose node works has not restarted since it answered.
    fn is_present(&self, shard: &ShardRecord, answer: &SealAnswer) -> bool {
        let node = self.node_record_of(shard, answer.replica);
        self.is_well(shard, answer.replica) && node.is_some_and(|node| node.life == answer.life)
    }
}

impl Attempt {
    pub(super) fn new(now: Now, epoch: Epoch, wish: Wish) -> Self {
        let (noticed, began) = (now.wall, now.steady);
        let drops_gone = wish.cause == Cause::Moved && wish.members.is_none();
        Self { wish, epoch, noticed, drops_gone, began, asked: None, answers: BTreeMap::new() }
    }

    /// Begins anew with a higher epoch: a member promised it.
    pub(super) fn raise(&mut self, now: Now, epoch: Epoch) {
        (self.epoch, self.began, self.asked) = (epoch, now.steady, None);
        self.answers.clear();
    }

    pub(super) fn handle_sealed(&mut self, answer: SealAnswer) {
        if answer.epoch == self.epoch {
            self.answers.insert(answer.replica, answer);
        }
    }

    /// Returns the members of the epochs that have to end, each once.
    fn sealed(view: View<'_>, shard: &ShardRecord) -> BTreeSet<ReplicaId> {
        let records = shard.history().records();
        let members = records.iter().flat_map(|record| record.config.members()).copied();
        members.filter(|member| view.node_of(shard, *member).is_some()).collect()
    }

    /// Returns the longest lease that a primary may still hold: none, if it is proven dead, or has answered the seal itself (rule 20).
    pub(super) fn lease(&self, view: View<'_>, shard: &ShardRecord) -> Micros {
        let holds = |record: &&EpochRecord| {
            let primary = record.config.primary();
            let answer = self.answers.get(&primary);
            answer.is_none_or(|answer| answer.life < record.life)
                && !view.state.is_dead(shard, primary, record.life)
        };
        let leases = shard.history().records().iter().filter(holds).map(|record| record.lease);
        leases.max().unwrap_or_default()
    }

    /// Whether an epoch that has to end may have answered clients before the commit.
    fn is_early(shard: &ShardRecord) -> bool {
        shard.history().records().iter().any(|record| record.lease > Micros(0))
    }

    /// Returns the replicas that are to be asked now. An id may seal exactly the epochs that name it (rule 2).
    pub(super) fn ask(&mut self, view: View<'_>, shard: &ShardRecord) -> Vec<ReplicaId> {
        let now = view.now.steady;
        if !view.is_due(self.asked) {
            return Vec::new();
        }
        self.asked = Some(now);
        let mut asked = Self::sealed(view, shard);
        // A primary that is to hand over goes on until the others begin: what it has beyond them was not answered.
        let old = shard.history().newest().config.primary();
        if self.hands_over(shard, old) && now.since(self.began) < view.settings.wait {
            asked.remove(&old);
        }
        // One that restarted since it answered would have to answer anew to lead.
        asked.retain(|replica| {
            let node = view.node_record_of(shard, *replica);
            let answer = self.answers.get(replica).map(|answer| answer.life);
            answer.is_none() || answer != node.map(|node| node.life)
        });
        asked.into_iter().collect()
    }

    /// Whether a primary that works is to hand over to another replica.
    fn hands_over(&self, shard: &ShardRecord, old: ReplicaId) -> bool {
        self.wish.primary.is_some_and(|primary| primary != old) && !Self::is_early(shard)
    }

    /// Whether more answers may come that are worth waiting for.
    fn waits(&self, view: View<'_>, shard: &ShardRecord) -> bool {
        let now = view.now.steady;
        if Self::is_early(shard) {
            // Each member that is not proven dead may have entries that clients were answered (rule 20). Once no lease can hold any more,
            // only those whose nodes work are waited for: until then these may not have been allowed to answer.
            let leased_until = granted_until(self.began, self.lease(view, shard));
            let is_missing = |member: &ReplicaId| {
                let node = view.node_record_of(shard, *member);
                !self.answers.contains_key(member)
                    && node.is_some_and(|node| node.dead < node.life)
                    && (now < leased_until || view.is_well(shard, *member))
            };
            let until = leased_until.plus(view.settings.wait);
            return now < until && Self::sealed(view, shard).iter().any(is_missing);
        }
        if self.wish.cause == Cause::NotLed {
            // Another one is to lead, if one of them can.
            let old = shard.history().newest().config.primary();
            let is_expected = |member: &ReplicaId| *member != old && view.is_well(shard, *member);
            let is_missing = |member: &ReplicaId| is_expected(member) && !self.answers.contains_key(member);
            return now.since(self.began) < view.settings.wait
                && Self::sealed(view, shard).iter().any(is_missing);
        }
        // The replica that is to lead answers like the others if it works.
        let preferred = self.wish.primary.unwrap_or(shard.history().newest().config.primary());
        let is_expected = !self.wish.cause.is_failure() && view.is_well(shard, preferred);
        is_expected && !self.answers.contains_key(&preferred) && now.since(self.began) < view.settings.wait
    }

    /// Returns the answers of replicas whose nodes work and have not restarted since.
    fn present(&self, view: View<'_>, shard: &ShardRecord) -> Vec<SealAnswer> {
        self.answers.values().filter(|answer| view.is_present(shard, answer)).cloned().collect()
    }

    /// Whether a member that is not there may return with what those that are may have lost: none is given up before. One that has
    /// answered was there until its node failed, or is there again and answers anew.
    fn waits_in_doubt(&self, view: View<'_>, shard: &ShardRecord, there: &[SealAnswer]) -> bool {
        let is_recent = |since: Time| view.now.steady.since(since) < view.settings.doubt_wait;
        let is_missing = |member: &ReplicaId| there.iter().all(|answer| answer.replica != *member);
        let is_awaited = |member: &ReplicaId| {
            let failed = view.node_of(shard, *member).and_then(|node| view.health.failed(node));
            match (self.answers.contains_key(member), failed) {
                (true, Some((_, since))) => is_recent(since),
                (true, None) => true,
                (false, _) => is_recent(self.began),
            }
        };
        Self::sealed(view, shard).iter().any(|member| is_missing(member) && is_awaited(member))
    }

    /// Decides on the takeover, if the answers suffice.
    ///
    /// # Errors
    /// The reason for which they do not, if it is not only that more answers are waited for.
    pub(super) fn decide(
        &self,
        view: View<'_>,
        loads: &mut Loads,
        id: ShardId,
        shard: &ShardRecord,
    ) -> Result<Option<(Takeover, bool)>, TakeoverError> {
        if self.waits(view, shard) {
            return Ok(None);
        }
        let usable = self.answers.values().filter(|answer| view.node_of(shard, answer.replica).is_some());
        let all: Vec<SealAnswer> = usable.cloned().collect();
        let judged = match shard.history().judge(self.epoch, &all) {
            Err(TakeoverError::TooFewSeals { .. } | TakeoverError::NoSeal { .. })
                if self.wish.is_forced && view.now.steady.since(self.began) >= view.settings.force_wait =>
            {
                let judgement = shard.history().judge_forced(self.epoch, &all)?;
                let config = self.choose(view, loads, id, shard, &all, &judgement, Source::Answers);
                return Ok(
                    config.map(|(config, life)| (self.takeover(view, id, shard, config, life, all), true))
                );
            }
            Err(error @ TakeoverError::TooFewSeals { .. }) if shard.history().is_doubted() => {
                // Members that are not sealed are given up. Beside them none may be gone that is: the next epoch might have too few.
                let there = self.present(view, shard);
                let judgement = shard.history().judge_doubted(self.epoch, &there)?;
                if self.waits_in_doubt(view, shard, &there) {
                    return Err(error);
                }
                let config = self.choose(view, loads, id, shard, &there, &judgement, Source::Answers);
                return Ok(
                    config.map(|(config, life)| (self.takeover(view, id, shard, config, life, there), false))
                );
            }
            judged => judged?,
        };
        if self.wish.cause == Cause::NotLed && !Self::is_early(shard) {
            // The others lead without its log if they are enough.
            let old = shard.history().newest().config.primary();
            let others: Vec<SealAnswer> =
                all.iter().filter(|answer| answer.replica != old).cloned().collect();
            let without = shard.history().judge(self.epoch, &others);
            let choice =
                without.ok().and_then(|j| self.choose(view, loads, id, shard, &others, &j, Source::Wish));
            if let Some((config, life)) = choice {
                return Ok(Some((self.takeover(view, id, shard, config, life, others), false)));
            }
        }
        let (mut answers, mut best) = (all.clone(), judged.clone());
        let error = loop {
            if let Some((config, life)) = self.choose(view, loads, id, shard, &answers, &best, Source::Wish) {
                return Ok(Some((self.takeover(view, id, shard, config, life, answers), false)));
            }
            // The best log is on a replica that cannot lead. The others suffice if they are enough without it: it alone has nothing
            // that is committed. What clients were answered before may be on it alone, so that it is waited for if it will lead,
            // and leads itself rather than to be passed by.
            let winner = best.winner;
            let is_early = Self::is_early(shard) && view.is_well(shard, winner);
            if is_early && self.members(view, shard, &answers, &best, Source::Wish).contains(&winner) {
                return Ok(None);
            }
            if is_early
                && let Some((config, life)) =
                    self.choose(view, loads, id, shard, &answers, &best, Source::Present)
            {
                return Ok(Some((self.takeover(view, id, shard, config, life, answers), false)));
            }
            answers.retain(|answer| answer.replica != winner);
            match shard.history().judge(self.epoch, &answers) {
                Ok(judgement) => best = judgement,
                Err(error) => break error,
            }
        };
        // Those that would lead if all went as planned cannot.
        for source in [Source::Present, Source::Winner] {
            let is_needed = source == Source::Present || may_leave_active(shard, &all, &judged);
            if is_needed
                && let Some((config, life)) = self.choose(view, loads, id, shard, &all, &judged, source)
            {
                return Ok(Some((self.takeover(view, id, shard, config, life, all), false)));
            }
        }
        Err(error)
    }

    fn takeover(
        &self,
        view: View<'_>,
        id: ShardId,
        shard: &ShardRecord,
        config: EpochConfig,
        life: Life,
        seals: Vec<SealAnswer>,
    ) -> Takeover {
        let (expected, dial) = (shard.history().newest().config.epoch(), view.state.dial_of(id));
        let (_, lease) = dial.copied().unwrap_or_default().acks_and_lease(config.members().len());
        Takeover { expected, config, life, lease, seals }
    }

    /// Returns the members of the new epoch by the judgement on these answers.
    fn members(
        &self,
        view: View<'_>,
        shard: &ShardRecord,
        answers: &[SealAnswer],
        judgement: &Judgement,
        source: Source,
    ) -> Vec<ReplicaId> {
        let newest = &shard.history().newest().config;
        let records = shard.history().records();
        let of = |record: Option<&EpochRecord>| record.map_or(Vec::new(), |r| r.config.members().to_vec());
        let of_active = || of(records.iter().find(|record| record.config.epoch() == judgement.active));
        let is_settled = judgement.active == newest.epoch();
        let mut members = match (source, &self.wish.members) {
            (Source::Answers, _) => answers.iter().map(|answer| answer.replica).collect(),
            (Source::Winner, _) => {
                of(records.iter().rev().find(|record| record.config.members().contains(&judgement.winner)))
            }
            (Source::Wish, Some(wished)) if is_settled => wished.clone(),
            (Source::Wish, Some(wished)) => {
                of_active().into_iter().filter(|member| wished.contains(member)).collect()
            }
            (Source::Wish, None) | (Source::Present, _) => of_active(),
        };
        let void = shard.history().void();
        members.retain(|member| view.node_of(shard, *member).is_some() && !void.contains(member));
        members
    }

    /// Chooses members and primary by the judgement on these answers.
    #[expect(clippy::too_many_arguments, reason = "they are what the choice depends on")]
    fn choose(
        &self,
        view: View<'_>,
        loads: &mut Loads,
        id: ShardId,
        shard: &ShardRecord,
        answers: &[SealAnswer],
        judgement: &Judgement,
        source: Source,
    ) -> Option<(EpochConfig, Life)> {
        let members = self.members(view, shard, answers, judgement, source);
        // The primary begins at exactly the base: it has to have that entry (rule 10).
        let leads = |answer: &&SealAnswer| {
            members.contains(&answer.replica)
                && answer.table.has(judgement.base)
                && view.is_present(shard, answer)
        };
        let old = shard.history().newest().config.primary();
        let rank = |answer: &&SealAnswer| {
            let replica = answer.replica;
            let is_wished = match self.wish.primary {
                Some(primary) => replica == primary,
                None => !self.wish.cause.is_failure() && replica == old,
            };
            // One that could not lead comes last.
            let has_failed = self.wish.cause == Cause::NotLed && replica == old;
            let load = view.node_of(shard, replica).map(|node| loads.of(node).primaries);
            // One whose state is being folded leads only after that, which may take seconds: only an operator may want that.
            let is_late = answer.is_folding && self.wish.cause != Cause::Operator;
            (has_failed, is_late, !is_wished, answer.is_folding, load, replica != judgement.winner, replica)
        };
        let primary = answers.iter().filter(leads).min_by_key(rank)?;
        let dial = view.state.dial_of(id)?;
        let (acks, _) = dial.acks_and_lease(members.len());
        let config = EpochConfig::parse(self.epoch, members, acks, primary.replica).ok()?;
        let config = config.with_durability(dial.durability);
        if let Some(to) = view.node_of(shard, primary.replica) {
            loads.move_primary(shard.primary_node(), to);
        }
        Some((config, primary.life))
    }
}

/// Whether the members of an epoch may be others than those of the last active one, although no later one is active: none of these
/// that is sealed has the entry behind which the epoch begins, so that none of them can lead it.
fn may_leave_active(shard: &ShardRecord, seals: &[SealAnswer], judgement: &Judgement) -> bool {
    let active = shard.history().records().iter().find(|record| record.config.epoch() == judgement.active);
    active.is_some_and(|active| !has_base(&active.config, seals, judgement.base))
}

/// Whether a sealed member of an epoch has an entry.
pub(super) fn has_base(config: &EpochConfig, seals: &[SealAnswer], base: LogPoint) -> bool {
    seals.iter().any(|seal| config.members().contains(&seal.replica) && seal.table.has(base))
}
