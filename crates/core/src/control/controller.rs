//! The decisions of the control plane, on the leader of its consensus.
//!
//! - A *failover*: seals are asked for, one frame a node; once they suffice, one command begins the epochs of all shards (rules 9
//!   and 25), and the records go to the primaries. A promise without a record, of an attempt that another leader began, is finished
//!   (rule 8).
//! - *Healing*: a replica whose disk is lost, or whose node is gone for long, is replaced by a learner that catches up first. What no
//!   epoch names any more is deleted (rule 5).
//! - *Changes*: another dial is a new epoch; a node that joins gets its share, one move at a time. A node that returns does not take
//!   its shards back.
//!
//! Its knowledge besides the state may be lost at any time: all of it comes again in reports.

use super::ControlState;
use super::apply::check_addresses;
use super::attempt::{Attempt, View, Wish};
use super::command::{Command, ShardChange, ShardCommand};
use super::dial::{Acks, Dial};
use super::facts::{Fact, Hello, NodeReport, Request, ShardReport};
use super::failover::Cause;
use super::health::Health;
use super::node::{DiskState, NodeRecord, StartId};
use super::placement::{Loads, Step, next_step};
use super::settings::Settings;
use super::shard::{ShardRecord, Stage};
use crate::clock::Now;
use crate::ids::{Epoch, Life, NodeId, ReplicaId, ShardId, Time};
use crate::replication::epoch::Seal;
use crate::replication::history::TakeoverError;
use std::collections::{BTreeMap, BTreeSet};

/// The kinds of changes of a shard, of which each is proposed once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    TakeOver,
    Active,
    Place,
    Release,
    Deleted,
    Void,
}

/// A change of the primary that is wanted, though nothing failed.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// By an operator.
    Failover { to: Option<NodeId>, is_forced: bool },
    /// To make loads even.
    Balance(ReplicaId),
}

/// The facts of a shard besides its record.
#[derive(Debug, Default)]
struct Watched {
    newest: Epoch,
    /// The time since which the newest epoch is known.
    begun: Time,
    reports: BTreeMap<ReplicaId, ShardReport>,
    /// The highest epoch that a replica is known to have promised.
    floor: Epoch,
    cannot_lead: Epoch,
    attempt: Option<Attempt>,
    wanted: Option<Wanted>,
    /// The time at which the record was last sent to the primary.
    led: Option<Time>,
    /// The time at which deletions were last ordered.
    ordered: Option<Time>,
    deleted: BTreeSet<ReplicaId>,
    void: BTreeSet<ReplicaId>,
    proposed: BTreeMap<Kind, (u64, Time)>,
    problem: Option<TakeoverError>,
    /// Attempts to move the primary since loads are made even.
    tries: u32,
}

impl Watched {
    fn handle_promised(&mut self, promised: Epoch) {
        // No epoch follows the greatest one.
        if promised < Epoch::MAX {
            self.floor = self.floor.max(promised);
        }
    }

    /// Whether a change may be proposed now: it was not before, or came to nothing.
    fn may_propose(&mut self, view: View<'_>, shard: &ShardRecord, kind: Kind) -> bool {
        let now = view.now.steady;
        let (version, again) = (shard.version(), view.settings.propose_again);
        let is_due =
            self.proposed.get(&kind).is_none_or(|(at, time)| *at != version || now.since(*time) >= again);
        if is_due {
            self.proposed.insert(kind, (version, now));
        }
        is_due
    }

    /// The report of the newest epoch's primary, while it leads.
    fn primary_report(&self, shard: &ShardRecord) -> Option<&ShardReport> {
        let config = &shard.history().newest().config;
        self.reports.get(&config.primary()).filter(|report| report.leads == Some(config.epoch()))
    }

    fn is_active(&self, shard: &ShardRecord) -> bool {
        let newest = shard.history().newest().config.epoch();
        shard.is_settled() || self.reports.values().any(|report| report.active == newest)
    }
}

struct PendingHello {
    hello: Hello,
    first: Time,
    last: Time,
    proposed: Option<Time>,
}

/// The requests that go out at the end of a look.
struct Outgoing<'a> {
    seals: BTreeMap<NodeId, Vec<(ShardId, ReplicaId, Seal)>>,
    changes: Vec<ShardCommand>,
    loads: Loads,
    /// Learners that catch up, and shards that change.
    learners: usize,
    out: &'a mut Vec<Request>,
}

impl Outgoing<'_> {
    fn change(&mut self, shard: ShardId, change: ShardChange) {
        self.changes.push(ShardCommand { shard, change });
    }
}

/// The controller, in one term of the consensus's leader.
pub struct Controller {
    settings: Settings,
    health: Health,
    shards: BTreeMap<ShardId, Watched>,
    hellos: BTreeMap<StartId, PendingHello>,
    dead: BTreeMap<NodeId, Life>,
    asks: Vec<NodeId>,
    /// The times at which commands on nodes were last proposed.
    proposed: BTreeMap<NodeId, Time>,
    balanced: Option<Time>,
    looked: Time,
}

impl Controller {
    /// Creates the controller of a leader that was just elected: it knows no more than the state.
    #[must_use]
    pub fn new(now: Now, settings: Settings) -> Self {
        Self {
            settings,
            health: Health::new(now.steady, settings.health),
            shards: BTreeMap::new(),
            hellos: BTreeMap::new(),
            dead: BTreeMap::new(),
            asks: Vec::new(),
            proposed: BTreeMap::new(),
            balanced: None,
            looked: now.steady,
        }
    }

    /// Returns the judgement on nodes.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the shards whose failover waits, with the reason.
    pub fn problems(&self) -> impl Iterator<Item = (ShardId, TakeoverError)> {
        self.shards.iter().filter_map(|(shard, watched)| Some((*shard, watched.problem?)))
    }

    /// Returns the time at which [`Controller::decide`] is due, if no fact comes before.
    #[must_use]
    pub fn wakes_at(&self) -> Time {
        self.looked.plus(self.settings.tick)
    }

    /// Handles a fact. [`Controller::decide`] says what follows from it.
    pub fn handle(&mut self, now: Now, fact: Fact) {
        match fact {
            // The command that registers it would be refused.
            Fact::Hello(hello) if check_addresses(&hello.addresses).is_err() => {}
            Fact::Hello(hello) if hello.earlier.len() > Hello::EARLIER_MAX => {}
            Fact::Hello(hello) => {
                // Their processes have ended.
                self.hellos.retain(|start, _| !hello.earlier.contains(start));
                if self.hellos.len() < ControlState::NODES_MAX || self.hellos.contains_key(&hello.start) {
                    let (first, last) = (now.steady, now.steady);
                    let new = PendingHello { hello: hello.clone(), first, last, proposed: None };
                    let pending = self.hellos.entry(hello.start).or_insert(new);
                    (pending.hello, pending.last) = (hello, last);
                }
            }
            Fact::Report(report) => self.handle_report(now, report),
            Fact::Closed(node) => {
                if self.health.handle_closed(now.steady, node) {
                    self.asks.push(node);
                }
            }
            Fact::Refused(node) => self.health.handle_refused(node),
            Fact::Dead(node, life) => {
                let known = self.dead.entry(node).or_default();
                *known = life.max(*known);
            }
            Fact::Sealed(shard, answer) => {
                if let Some(attempt) =
                    self.shards.get_mut(&shard).and_then(|watched| watched.attempt.as_mut())
                {
                    attempt.handle_sealed(answer);
                }
            }
            // Of shards that are not known yet, too: what an operator asks for, or a replica reports, comes once.
            Fact::Superseded { shard, promised } => self.watched(shard).handle_promised(promised),
            Fact::CannotLead { shard, epoch } => {
                let watched = self.watched(shard);
                watched.cannot_lead = watched.cannot_lead.max(epoch);
            }
            Fact::Deleted(shard, replica) => drop(self.watched(shard).deleted.insert(replica)),
            Fact::Void(shard, replica) => drop(self.watched(shard).void.insert(replica)),
            Fact::Failover { shard, to, is_forced } => {
                self.watched(shard).wanted = Some(Wanted::Failover { to, is_forced });
            }
        }
    }

    fn watched(&mut self, shard: ShardId) -> &mut Watched {
        self.shards.entry(shard).or_default()
    }

    fn handle_report(&mut self, now: Now, report: NodeReport) {
        if !self.health.handle_report(now.steady, &report) {
            return;
        }
        for report in report.shards {
            let watched = self.watched(report.shard);
            watched.handle_promised(report.promised);
            watched.reports.insert(report.replica, report);
        }
    }

    /// Looks at everything, and appends what is to be done.
    pub fn decide(&mut self, now: Now, state: &ControlState, out: &mut Vec<Request>) {
        self.looked = now.steady;
        self.health.look(now.steady, state);
        out.extend(self.asks.drain(..).map(Request::Ask));
        self.decide_nodes(now, state, out);
        self.shards.retain(|id, _| state.shard(*id).is_some());
        for (id, _) in state.shards() {
            self.shards.entry(id).or_default();
        }
        let view = View { now, settings: &self.settings, state, health: &self.health };
        let loads = Loads::new(state, &self.health);
        let learners = state.shards().map(|(_, shard)| shard.learners().count()).sum();
        let mut outgoing = Outgoing { seals: BTreeMap::new(), changes: Vec::new(), loads, learners, out };
        for (id, shard) in state.shards() {
            if let Some(watched) = self.shards.get_mut(&id) {
                watched.decide(view, id, shard, &mut outgoing);
            }
        }
        self.balance(now, state, &mut outgoing);
        let Outgoing { seals, changes, out, .. } = outgoing;
        out.extend(seals.into_iter().map(|(node, seals)| Request::Seal { node, seals }));
        out.extend(Command::of_changes(changes).into_iter().map(Request::Propose));
    }

    /// Registers starts, and removes nodes that have left.
    fn decide_nodes(&mut self, now: Now, state: &ControlState, out: &mut Vec<Request>) {
        let again = self.settings.propose_again;
        let is_due = |at: Option<Time>| at.is_none_or(|at| now.steady.since(at) >= again);
        let is_registered = |start: StartId| state.nodes().values().any(|node| node.start == start);
        let forget = self.settings.doubt.times(4);
        self.hellos
            .retain(|start, pending| !is_registered(*start) && now.steady.since(pending.last) < forget);
        for pending in self.hellos.values_mut() {
            let Hello { node, life, start, ref addresses, .. } = pending.hello;
            let addresses = addresses.clone();
            let command = match node {
                None => Command::Join { node: state.next_node(), life, start, addresses },
                Some(node) => {
                    let Some(record) = state.nodes().get(&node) else { continue };
                    if !is_believed(&self.settings, &self.health, pending, node, record) {
                        continue;
                    }
                    let disk =
                        if holds(&pending.hello, record) { pending.hello.disk } else { DiskState::Lost };
                    Command::Start { node, expected: record.start, life, start, disk, addresses }
                }
            };
            if is_due(pending.proposed) {
                pending.proposed = Some(now.steady);
                out.push(Request::Propose(command));
            }
        }
        self.dead.retain(|node, life| state.nodes().get(node).is_some_and(|record| record.dead < *life));
        self.proposed.retain(|node, _| state.nodes().contains_key(node));
        for (&node, record) in state.nodes() {
            if !is_due(self.proposed.get(&node).copied()) {
                continue;
            }
            let command = match self.dead.get(&node) {
                Some(&life) if life <= record.life => Command::ProveDead { node, life },
                _ if record.is_leaving => {
                    let mut placed = state.shards().flat_map(|(_, shard)| shard.replicas().values());
                    if placed.any(|placed| placed.node == node && placed.stage != Stage::Released) {
                        continue;
                    }
                    Command::Remove { node }
                }
                _ => continue,
            };
            self.proposed.insert(node, now.steady);
            out.push(Request::Propose(command));
        }
    }

    /// Moves one replica or primary, if nothing else changes.
    fn balance(&mut self, now: Now, state: &ControlState, outgoing: &mut Outgoing<'_>) {
        if !state.is_balancing() {
            self.shards.values_mut().for_each(|watched| watched.tries = 0);
            return;
        }
        let is_recent = self.balanced.is_some_and(|at| now.steady.since(at) < self.settings.balance);
        let is_quiet = |(id, shard): (ShardId, &ShardRecord)| {
            shard.is_settled() && self.shards.get(&id).is_none_or(|watched| watched.attempt.is_none())
        };
        if is_recent || outgoing.learners > 0 || !state.shards().all(is_quiet) {
            return;
        }
        self.balanced = Some(now.steady);
        let may_lead = |shard| self.shards.get(&shard).is_some_and(|watched| watched.tries < 3);
        match next_step(state, &outgoing.loads, may_lead) {
            Some(Step::Place(shard, node)) => {
                if let Some(record) = state.shard(shard) {
                    let replica = record.next_replica();
                    outgoing.change(shard, ShardChange::Place { replica, node });
                }
            }
            Some(Step::Lead(shard, replica)) => {
                if let Some(watched) = self.shards.get_mut(&shard) {
                    watched.tries += 1;
                    watched.wanted = Some(Wanted::Balance(replica));
                }
            }
            None if !outgoing.loads.are_complete() => {}
            None => outgoing.out.push(Request::Propose(Command::SetBalancing { is_balancing: false })),
        }
    }
}

/// Whether the disk of a start has all that the registered start of its node wrote (rule 3). The number of lives alone does not show
/// that: starts that fail count lives on an older copy, too.
fn holds(hello: &Hello, record: &NodeRecord) -> bool {
    let has_registered = hello.earlier.is_empty() || hello.earlier.contains(&record.start);
    hello.life > record.life && has_registered
}

/// Whether the start of a node is to be registered. One whose disk lacks the registered start is on an older copy of the disk, or
/// is a message that came late: it has to insist, while the registered life is not heard.
fn is_believed(
    settings: &Settings,
    health: &Health,
    pending: &PendingHello,
    node: NodeId,
    record: &NodeRecord,
) -> bool {
    if holds(&pending.hello, record) {
        return true;
    }
    let is_alone = health.heard(node).is_none_or(|heard| heard <= pending.first);
    is_alone && pending.last.since(pending.first) >= settings.doubt
}

impl Watched {
    fn decide(&mut self, view: View<'_>, id: ShardId, shard: &ShardRecord, outgoing: &mut Outgoing<'_>) {
        let newest = shard.history().newest().config.epoch();
        if self.newest != newest {
            (self.newest, self.begun, self.led) = (newest, view.now.steady, None);
            (self.attempt, self.problem) = (None, None);
        }
        self.reports.retain(|replica, _| shard.replicas().contains_key(replica));
        self.deleted.retain(|replica| shard.replicas().contains_key(replica));
        self.void.retain(|replica| shard.replicas().get(replica).is_some_and(|placed| !placed.is_void));
        // The only one has nothing to be replaced from.
        let mut void = self.void.iter().copied();
        if let Some(replica) = void.find(|replica| !shard.history().is_alone(*replica))
            && self.may_propose(view, shard, Kind::Void)
        {
            outgoing.change(id, ShardChange::Void { replica });
        }
        self.record_active(view, id, shard, outgoing);
        if let (Some(attempt), Some(Wanted::Failover { is_forced: true, .. })) =
            (&mut self.attempt, self.wanted)
        {
            (attempt.wish.is_forced, self.wanted) = (true, None);
        }
        if self.attempt.is_none() {
            let wish = self.failure(view, id, shard);
            let wish = wish.or_else(|| self.take_wanted(view, &outgoing.loads, id, shard));
            if let Some(wish) = wish.or_else(|| self.change(view, &outgoing.loads, id, shard)) {
                self.attempt = Some(Attempt::new(view.now, self.floor.max(newest).next(), wish));
            }
        }
        if self.attempt.is_some() {
            self.go_on(view, id, shard, outgoing);
        } else {
            self.lead(view, id, shard, outgoing);
        }
        self.place(view, id, shard, outgoing);
        self.release(view, id, shard, outgoing);
    }

    fn record_active(
        &mut self,
        view: View<'_>,
        id: ShardId,
        shard: &ShardRecord,
        outgoing: &mut Outgoing<'_>,
    ) {
        let is_known = |epoch: &Epoch| shard.history().records().iter().any(|r| r.config.epoch() == *epoch);
        let active = self.reports.values().map(|report| report.active).filter(is_known).max();
        if let Some(epoch) = active.filter(|epoch| *epoch > shard.active())
            && self.may_propose(view, shard, Kind::Active)
        {
            outgoing.change(id, ShardChange::Active { epoch, at: view.now.wall });
        }
    }

    /// Returns a reason for which the newest epoch cannot go on.
    fn failure(&self, view: View<'_>, id: ShardId, shard: &ShardRecord) -> Option<Wish> {
        let record = shard.history().newest();
        let (epoch, primary) = (record.config.epoch(), record.config.primary());
        let Some(node) = view.node_of(shard, primary) else { return Some(Wish::of(Cause::DiskLost)) };
        if view.state.nodes().get(&node).is_some_and(|node| node.life != record.life) {
            return Some(Wish::of(Cause::Restarted));
        }
        if let Some((cause, _)) = view.health.failed(node) {
            // Where no other replica could lead, an attempt would only end what may go on.
            let mut others = record.config.members().iter().filter(|member| **member != primary);
            return others.any(|member| view.is_well(shard, *member)).then(|| Wish::of(cause));
        }
        if self.floor > epoch {
            return Some(Wish::of(Cause::Superseded));
        }
        let waited = view.now.steady.since(self.begun);
        let leads = self.primary_report(shard).is_some() || self.is_active(shard);
        if self.cannot_lead >= epoch || !leads && waited > view.settings.lead {
            return Some(Wish::of(Cause::NotLed));
        }
        // Members that are gone keep the epoch from becoming active: it goes on without them.
        let well = record.config.members().iter().filter(|member| view.is_well(shard, **member)).count();
        let is_short = !self.is_active(shard) && well < record.config.commit_quorum();
        let is_due = is_short && waited > view.settings.propose_again;
        let gone = record.config.members().iter().any(|member| self.is_gone(view, shard, *member));
        let goes_on = is_due && gone && self.without_gone(view, id, shard).is_some();
        goes_on.then(|| Wish::of(Cause::Moved))
    }

    /// Takes what an operator or the balance of loads asked for.
    fn take_wanted(
        &mut self,
        view: View<'_>,
        loads: &Loads,
        id: ShardId,
        shard: &ShardRecord,
    ) -> Option<Wish> {
        match self.wanted.take()? {
            Wanted::Balance(replica) => Some(Wish { primary: Some(replica), ..Wish::of(Cause::Balanced) }),
            Wanted::Failover { to, is_forced } => {
                let primary = match to {
                    Some(node) => Some(view.state.member_on(id, node).ok()?),
                    None => Self::other_primary(view, loads, shard),
                };
                Some(Wish { primary, is_forced, ..Wish::of(Cause::Operator) })
            }
        }
    }

    /// Returns the member that is to lead if another one than now is wanted: that on the node with the fewest primaries.
    fn other_primary(view: View<'_>, loads: &Loads, shard: &ShardRecord) -> Option<ReplicaId> {
        let config = &shard.history().newest().config;
        let others = config.members().iter().copied().filter(|member| *member != config.primary());
        let well = others.filter(|member| view.is_well(shard, *member));
        well.min_by_key(|member| (view.node_of(shard, *member).map(|node| loads.of(node).primaries), *member))
    }

    /// Whether a replica is to be replaced: its data are lost, or its node has failed for long.
    fn is_gone(&self, view: View<'_>, shard: &ShardRecord, replica: ReplicaId) -> bool {
        let Some(node) = view.node_of(shard, replica) else { return true };
        let failed = view.health.failed(node);
        failed.is_some_and(|(_, since)| view.now.steady.since(since) >= view.settings.replace_after)
    }

    fn is_leaving(view: View<'_>, shard: &ShardRecord, replica: ReplicaId) -> bool {
        let node = view.node_record_of(shard, replica);
        node.is_some_and(|node| node.is_leaving)
    }

    /// Whether a replica is one that is to stay.
    fn stays(&self, view: View<'_>, shard: &ShardRecord, replica: ReplicaId) -> bool {
        !self.is_gone(view, shard, replica) && !Self::is_leaving(view, shard, replica)
    }

    /// Returns a change of the members or the dial that is due.
    fn change(&self, view: View<'_>, loads: &Loads, id: ShardId, shard: &ShardRecord) -> Option<Wish> {
        let dial = view.state.dial_of(id)?;
        let record = shard.history().newest();
        let (config, primary) = (&record.config, record.config.primary());
        // Otherwise a failure is under way.
        let report = self.primary_report(shard).filter(|_| shard.is_settled())?;
        let wanted = usize::from(dial.replicas);
        let members = config.members();
        let mut target: Vec<ReplicaId> =
            members.iter().copied().filter(|member| self.stays(view, shard, *member)).collect();
        let is_ready = |learner: &ReplicaId| {
            report.caught_up.contains(learner)
                && view.is_well(shard, *learner)
                && self.stays(view, shard, *learner)
        };
        target.extend(shard.learners().filter(is_ready));
        // A learner seals no epoch yet, and only who has sealed may lead: the primary hands over in the next epoch.
        if !target.iter().any(|replica| members.contains(replica)) && view.node_of(shard, primary).is_some() {
            target.push(primary);
        }
        // Those that are to go stay until they are replaced.
        let can_replace = shard.learners().next().is_some() || loads.spare(view.state, id, shard).is_some();
        for &member in members {
            let is_weak = view.node_of(shard, member).is_some() && !target.contains(&member);
            let keeps = can_replace || !Self::is_leaving(view, shard, member) || target.is_empty();
            if is_weak && keeps && target.len() < wanted {
                target.push(member);
            }
        }
        let load =
            |replica: ReplicaId| view.node_of(shard, replica).map_or(0, |node| loads.of(node).replicas);
        let is_fuller = |other: &ReplicaId| *other == primary || load(*other) < load(primary);
        let lightens = view.state.is_balancing() && target.iter().all(is_fuller);
        while target.len() > wanted.max(1) {
            let rank = |replica: &ReplicaId| {
                let stays = self.stays(view, shard, *replica);
                let may_go = *replica != primary || !stays || lightens;
                (may_go, !stays, !view.is_well(shard, *replica), load(*replica), *replica)
            };
            let victim = target.iter().copied().max_by_key(rank)?;
            let left = target.iter().filter(|replica| **replica != victim);
            if !left.clone().any(|replica| members.contains(replica)) {
                break;
            }
            target = left.copied().collect();
        }
        let (acks, lease) = dial.acks_and_lease(target.len());
        let well = target.iter().filter(|member| view.is_well(shard, **member)).count();
        if well < acks.max(target.len() / 2 + 1) {
            return None;
        }
        let is_same = target.len() == members.len() && target.iter().all(|member| members.contains(member));
        let is_kept = dial.durability == config.durability() && !Self::ends_doubt(view, shard);
        if is_same && is_kept && (acks, lease) == (config.acks(), record.lease) {
            // All is as it should be, but that the primary's node may be leaving.
            let heir = target.iter().copied().find(|member| self.stays(view, shard, *member));
            let leaves = Self::is_leaving(view, shard, primary);
            return heir
                .filter(|_| leaves)
                .map(|heir| Wish { primary: Some(heir), ..Wish::of(Cause::Balanced) });
        }
        let replaces = target.len() == members.len() || !target.contains(&primary);
        let cause = if is_same || !replaces { Cause::DialChanged } else { Cause::Moved };
        // A member that was there before leads, if the primary goes.
        let is_heir = |member: &&ReplicaId| members.contains(member) && view.is_well(shard, **member);
        let heir = if target.contains(&primary) { None } else { target.iter().find(is_heir).copied() };
        Some(Wish { members: Some(target), primary: heir, ..Wish::of(cause) })
    }

    /// Whether the next epoch would end a doubt, and enough members are there to begin it without a wait.
    fn ends_doubt(view: View<'_>, shard: &ShardRecord) -> bool {
        let (history, config) = (shard.history(), &shard.history().newest().config);
        let well = config.members().iter().filter(|member| view.is_well(shard, **member));
        let sure = well.clone().filter(|member| !history.doubts(**member)).count();
        let needed = config.members().len() - config.commit_quorum() + 1;
        history.is_doubted() && (sure >= needed || well.count() == config.members().len())
    }

    /// Places a learner, if there are fewer replicas than wanted.
    fn place(&mut self, view: View<'_>, id: ShardId, shard: &ShardRecord, outgoing: &mut Outgoing<'_>) {
        let Some(dial) = view.state.dial_of(id) else { return };
        let here = shard.replicas().iter().filter(|(replica, placed)| {
            let counts =
                placed.stage == Stage::Learner || shard.history().newest().config.members().contains(replica);
            counts && self.stays(view, shard, **replica)
        });
        let has_room = outgoing.learners < view.settings.learners_max;
        if here.count() >= usize::from(dial.replicas) || !has_room || self.primary_report(shard).is_none() {
            return;
        }
        if let Some(node) = outgoing.loads.spare(view.state, id, shard)
            && self.may_propose(view, shard, Kind::Place)
        {
            outgoing.loads.place(node);
            outgoing.learners += 1;
            outgoing.change(id, ShardChange::Place { replica: shard.next_replica(), node });
        }
    }

    /// Releases replicas that are not needed any more, and orders their deletion.
    fn release(&mut self, view: View<'_>, id: ShardId, shard: &ShardRecord, outgoing: &mut Outgoing<'_>) {
        let now = view.now.steady;
        let wanted = view.state.dial_of(id).map_or(1, |dial| usize::from(dial.replicas));
        let members = shard.history().newest().config.members();
        let full = members.iter().filter(|member| self.stays(view, shard, **member)).count() >= wanted;
        let replicas =
            |replica: ReplicaId| view.node_of(shard, replica).map(|node| outgoing.loads.of(node).replicas);
        let fullest = members.iter().filter_map(|member| replicas(*member)).max();
        let lightens = |replica| view.state.is_balancing() && replicas(replica) < fullest;
        let useless: BTreeSet<ReplicaId> =
            shard.learners().filter(|learner| full && !lightens(*learner)).collect();
        let is_due = view.is_due(self.ordered);
        for (&replica, placed) in shard.replicas() {
            let is_gone = view.state.is_gone(placed);
            match placed.stage {
                Stage::Released if is_gone || self.deleted.contains(&replica) => {
                    if self.may_propose(view, shard, Kind::Deleted) {
                        outgoing.change(id, ShardChange::Deleted { replica });
                    }
                }
                Stage::Released => {
                    if is_due && view.health.is_well(placed.node) {
                        self.ordered = Some(now);
                        outgoing.out.push(Request::Delete { node: placed.node, shard: id, replica });
                    }
                }
                Stage::Member | Stage::Learner if shard.is_named(replica) || self.attempt.is_some() => {}
                Stage::Member | Stage::Learner => {
                    let is_learner = placed.stage == Stage::Learner;
                    let is_over = if is_learner {
                        useless.contains(&replica) || !self.stays(view, shard, replica)
                    } else {
                        shard.is_settled()
                    };
                    if is_over && self.may_propose(view, shard, Kind::Release) {
                        outgoing.change(id, ShardChange::Release { replica });
                    }
                }
            }
        }
    }

    /// Sends the record to the primary, until it leads and knows all learners and the allowed lag.
    fn lead(&mut self, view: View<'_>, id: ShardId, shard: &ShardRecord, outgoing: &mut Outgoing<'_>) {
        let record = shard.history().newest();
        let Some(node) = view.node_of(shard, record.config.primary()) else { return };
        let learners: Vec<ReplicaId> =
            shard.learners().filter(|learner| view.node_of(shard, *learner).is_some()).collect();
        let max_lag = view.state.dial_of(id).map_or(Dial::default().max_lag, |dial| dial.max_lag);
        let knows = |report: &ShardReport| {
            report.max_lag == Some(max_lag)
                && learners.iter().all(|learner| report.learners.contains(learner))
        };
        let is_due = view.is_due(self.led);
        if !self.primary_report(shard).is_some_and(knows) && is_due {
            self.led = Some(view.now.steady);
            let record = Box::new(record.clone());
            outgoing.out.push(Request::Lead { node, shard: id, record, learners, max_lag });
        }
    }

    /// Asks for seals, and proposes the takeover once they suffice.
    fn go_on(&mut self, view: View<'_>, id: ShardId, shard: &ShardRecord, outgoing: &mut Outgoing<'_>) {
        let Some(mut attempt) = self.attempt.take() else { return };
        if self.floor > attempt.epoch {
            attempt.raise(view.now, self.floor.next());
        }
        if attempt.drops_gone {
            // Anew each time: one that was gone may have returned, and another one not.
            attempt.wish.members = self.without_gone(view, id, shard);
        }
        let lease = attempt.lease(view, shard);
        for replica in attempt.ask(view, shard) {
            if let Some(node) = view.node_of(shard, replica) {
                let seal = Seal { epoch: attempt.epoch, lease };
                outgoing.seals.entry(node).or_default().push((id, replica, seal));
            }
        }
        match attempt.decide(view, &mut outgoing.loads, id, shard) {
            Ok(None) => self.problem = None,
            Ok(Some((takeover, is_forced))) => {
                let (cause, noticed) = (attempt.wish.cause, attempt.noticed);
                let asked = takeover.config.epoch();
                let change = ShardChange::TakeOver { takeover, cause, noticed, is_forced };
                let command = ShardCommand { shard: id, change };
                let bytes = command.bytes();
                let is_too_large = bytes > ShardCommand::BYTES_MAX;
                self.problem = is_too_large.then_some(TakeoverError::TooLarge { asked, bytes });
                if !is_too_large && self.may_propose(view, shard, Kind::TakeOver) {
                    outgoing.changes.push(command);
                }
            }
            Err(error) => self.problem = Some(error),
        }
        self.attempt = Some(attempt);
    }

    /// Returns the members without those that are gone, as far as the dial allows it: one that names a number of acks is not weakened
    /// while those may return. Data that are lost do not.
    fn without_gone(&self, view: View<'_>, id: ShardId, shard: &ShardRecord) -> Option<Vec<ReplicaId>> {
        let config = &shard.history().newest().config;
        let members =
            config.members().iter().copied().filter(|member| view.node_of(shard, *member).is_some());
        let (gone, left): (Vec<ReplicaId>, Vec<ReplicaId>) =
            members.partition(|member| self.is_gone(view, shard, *member));
        let is_allowed = match view.state.dial_of(id).map(|dial| dial.acks) {
            Some(Acks::Count(count)) if !gone.is_empty() => left.len() >= usize::from(count),
            _ => !left.is_empty(),
        };
        is_allowed.then_some(left)
    }
}
