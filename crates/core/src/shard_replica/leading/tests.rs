//! Tests of a primary that is driven by hand.

use super::super::io::{Input, ReplicaName};
use super::super::recovery::Recovery;
use super::*;
use crate::calls::{Call, Identity, Lost, Outcome, Request};
use crate::capture::View;
use crate::commit_tracker::EpochConfig;
use crate::entry::{Cause, Entry};
use crate::handler::{Handler, Txn};
use crate::ids::{CallToken, Colour, Generation, Incarnation, Life, Round, SessionId, ShardId};
use crate::key::Key;
use crate::record::RecordKey;
use crate::replication::epoch::{Mark, Seal};
use crate::replication::lease::Grants;
use crate::replication::table::Losses;
use crate::reply::Reply;
use crate::shard::{Settings, StepOutcome};
use crate::state::State;
use crate::topology::Topology;
use std::sync::Arc;

struct Idle;

impl Handler for Idle {
    fn handle(&mut self, _: &Call<'_>, _: &mut Txn<'_>) -> Outcome {
        unreachable!("nothing is called")
    }

    fn query(&mut self, _: &Call<'_>, _: View<'_>) -> Outcome {
        unreachable!("nothing is called")
    }
}

impl Watched for Idle {}

/// Starts a task with each request.
struct Starter;

impl Handler for Starter {
    fn handle(&mut self, _: &Call<'_>, txn: &mut Txn<'_>) -> Outcome {
        txn.start_task("long", Blob::empty()).unwrap();
        Outcome::Replied(Reply::Ok(Blob::empty()))
    }

    fn query(&mut self, _: &Call<'_>, _: View<'_>) -> Outcome {
        Outcome::Replied(Reply::Ok(Blob::empty()))
    }
}

impl Watched for Starter {}

fn replica(settings: Settings) -> ShardReplica {
    let mut topology = Topology::new(Incarnation(1));
    topology.ensure("list", 1).unwrap();
    let name = ReplicaName { id: ReplicaId(1), life: Life(1) };
    let recovery = Recovery::new(State::new(ShardId(0)));
    let topology = Arc::new(topology);
    ShardReplica::new(name, recovery, Grants::new(), topology, settings, ReplicaSettings::default())
}

fn lead(epoch: u64, base: LogPoint, members: &[u64], learners: &[u64]) -> Input {
    let [members, learners] = [members, learners].map(|ids| ids.iter().copied().map(ReplicaId).collect());
    let config = EpochConfig::parse(Epoch(epoch), members, 1, ReplicaId(1)).unwrap();
    let (life, lease, generation, losses) = (Life(1), Micros(0), Generation(0), Losses::default());
    let earlier = BTreeMap::new();
    let record = Box::new(EpochRecord { config, life, lease, generation, base, losses, earlier });
    Input::Lead { record, learners, max_lag: Micros(100) }
}

/// A request of which the client has seen an entry of the shard.
fn request(payload: Blob, seen: Option<LogPoint>) -> shard::Input {
    shard::Input::Request(Request {
        token: CallToken(1),
        process: Key::new("a").unwrap(),
        payload,
        principal: "alice".into(),
        identity: Identity::None,
        colour: Colour(0),
        seen,
        is_first: false,
    })
}

const NOW: Now = Now { steady: Time(1), wall: Time(1) };

/// Gives a replica an input, and makes durable what it writes.
fn give(replica: &mut ShardReplica, input: Input) -> Vec<shard::Effect> {
    let (mut out, mut effects) = (Effects::default(), Vec::new());
    replica.handle(NOW, input, &mut Starter, &mut out);
    loop {
        let records = out.log_records();
        effects.append(&mut out.shard);
        out = Effects::default();
        if records == 0 {
            return effects;
        }
        replica.handle(NOW, Input::Durable(records), &mut Starter, &mut out);
    }
}

#[test]
fn a_step_of_an_epoch_that_is_over_does_not_count_in_a_later_one() {
    let mut replica = replica(Settings::default());
    replica.assume_clean();
    give(&mut replica, lead(1, LogPoint::default(), &[1], &[]));
    let mut out = Effects::default();
    replica.handle_shard(NOW, request(Blob::empty(), None), &mut Starter, &mut out);
    let records = out.log_records();
    let run = |effects: Vec<shard::Effect>| {
        effects.into_iter().find_map(|effect| match effect {
            shard::Effect::RunStep { id, run, task, .. } => Some((id, run, task.step)),
            _ => None,
        })
    };
    let (id, first, step) = run(give(&mut replica, Input::Durable(records))).unwrap();
    give(&mut replica, Input::Seal(Seal { epoch: Epoch(2), lease: Micros(0) }));
    assert_eq!(replica.replica().leads(), None);
    let base = replica.replica().table().last();
    let (again, second, _) = run(give(&mut replica, lead(2, base, &[1], &[]))).unwrap();
    assert_eq!(again, id);
    let mut end = |run| {
        let outcome = StepOutcome::Done(Blob::empty());
        let mut out = Effects::default();
        let input = shard::Input::TaskStep { id, step, run, outcome };
        replica.handle_shard(NOW, input, &mut Starter, &mut out);
        out.log_records()
    };
    assert_eq!(end(first), 0, "it is of the epoch that is over");
    assert_eq!(end(second), 1);
}

/// A replica that leads the first epoch of three members behind primaries of these lives.
fn follows(earlier: &[(u64, u64)]) -> ShardReplica {
    let mut replica = replica(Settings::default());
    lead_after(&mut replica, 1, LogPoint::default(), earlier);
    replica
}

fn lead_after(replica: &mut ShardReplica, epoch: u64, base: LogPoint, earlier: &[(u64, u64)]) {
    let Input::Lead { mut record, learners, max_lag } = lead(epoch, base, &[1], &[]) else {
        unreachable!("it is one")
    };
    let members = [1, 2, 3].map(ReplicaId).to_vec();
    record.config = EpochConfig::parse(Epoch(epoch), members, 2, ReplicaId(1)).unwrap();
    record.earlier = earlier.iter().map(|(id, life)| (ReplicaId(*id), Life(*life))).collect();
    give(replica, Input::Lead { record, learners, max_lag });
    commit(replica);
}

/// Another member stores what there is, and then what follows from that.
fn commit(replica: &mut ShardReplica) {
    for _ in 0..2 {
        let (epoch, upto) = (replica.replica().promised(), replica.replica().table().last().index);
        give(replica, Input::Frame { from: ReplicaId(2), frame: Frame::Ack { epoch, upto } });
    }
}

/// Whether a new request waits for an attempt.
fn is_suspected(replica: &mut ShardReplica, number: u8) -> bool {
    let mut out = Effects::default();
    let request = request(Blob::from([number].as_slice()), None);
    replica.handle_shard(NOW, request, &mut Starter, &mut out);
    let appended = out.shard.iter().find_map(|effect| match effect {
        shard::Effect::Append { bytes, .. } => Some(Entry::decode(bytes).unwrap().cause),
        _ => None,
    });
    let records = out.log_records();
    give(replica, Input::Durable(records));
    commit(replica);
    appended.expect("it is active") == Cause::Attempt
}

#[test]
fn requests_are_suspected_until_all_primaries_before_are_known_to_live() {
    let mut replica = follows(&[(2, 4), (3, 7)]);
    let mut confirms = |number, from, life, vouches| {
        let mark = Mark { life: Life(life), at: Time(1) };
        let frame = Frame::Confirm { epoch: Epoch(1), round: Round(0), mark, vouches };
        give(&mut replica, Input::Frame { from: ReplicaId(from), frame });
        is_suspected(&mut replica, number)
    };
    assert!(confirms(1, 2, 4, true), "the other one is missing");
    assert!(confirms(2, 3, 8, true), "its process began anew");
    assert!(confirms(3, 3, 7, false), "it suspected something itself");
    assert!(!confirms(4, 3, 7, true));
    assert!(!is_suspected(&mut follows(&[]), 1), "there were none");
}

#[test]
fn a_primary_that_follows_itself_suspects_what_it_suspected_before() {
    for (earlier, was_suspected) in [(&[][..], false), (&[(2, 4)][..], true)] {
        let mut replica = follows(earlier);
        assert_eq!(is_suspected(&mut replica, 1), was_suspected);
        give(&mut replica, Input::Seal(Seal { epoch: Epoch(2), lease: Micros(0) }));
        let base = replica.replica().table().last();
        lead_after(&mut replica, 2, base, &[(1, 1)]);
        assert_eq!(is_suspected(&mut replica, 2), was_suspected);
    }
}

#[test]
fn a_client_that_has_seen_what_is_lost_gets_a_report_of_it_and_no_other_one_does() {
    let mut replica = replica(Settings::default());
    let Input::Lead { mut record, learners, max_lag } = lead(3, LogPoint::default(), &[1], &[]) else {
        unreachable!("it is one")
    };
    record.losses.record(Epoch(2), Index(4));
    give(&mut replica, Input::Lead { record, learners, max_lag });
    let point = |epoch, index| LogPoint { epoch: Epoch(epoch), index: Index(index) };
    // The answer to a request, or to a query of a kind.
    let mut ask = |seen, read: Option<Read>| {
        let input = match read {
            None => request(Blob::empty(), seen),
            Some(read) => {
                let (token, process, payload) = (CallToken(1), Key::new("a").unwrap(), Blob::empty());
                let principal = "alice".into();
                shard::Input::Query(Query { token, process, payload, principal, read, seen })
            }
        };
        let mut out = Effects::default();
        replica.handle_shard(NOW, input, &mut Starter, &mut out);
        replica.flush(NOW, &mut Starter, &mut out);
        let records = out.log_records();
        let mut effects = std::mem::take(&mut out.shard);
        effects.extend(give(&mut replica, Input::Durable(records)));
        let answer = effects.into_iter().find_map(|effect| match effect {
            shard::Effect::Answer(answer) => Some(answer.result.map(|_| ())),
            shard::Effect::Query(_) => Some(Ok(())),
            _ => None,
        });
        answer.expect("it is answered")
    };
    for seen in [None, Some(point(2, 4)), Some(point(1, 9)), Some(point(3, 1))] {
        assert_eq!(ask(seen, None), Ok(()), "{seen:?} is not lost");
        assert_eq!(ask(seen, Some(Read::Linearizable)), Ok(()), "{seen:?} is not lost");
    }
    let seen = point(2, 5);
    assert_eq!(ask(Some(seen), Some(Read::Stale { max_lag: None })), Ok(()));
    for read in [Some(Read::Linearizable), Some(Read::Service), None] {
        let Err(Refusal::Lost(lost)) = ask(Some(seen), read) else { panic!("{read:?} reports no loss") };
        let Lost { shard, service, kept, now, .. } = *lost;
        assert_eq!((shard, service.as_str(), kept, now.epoch), (ShardId(0), "list", Index(4), Epoch(3)));
        assert_eq!(lost.seen, seen);
        assert_eq!(ask(Some(now), read), Ok(()), "it goes on");
    }
}

#[test]
fn the_inputs_of_a_turn_share_a_frame_and_a_round() {
    let mut replica = replica(Settings::default());
    give(&mut replica, lead(1, LogPoint::default(), &[1, 2], &[]));
    replica.flush(NOW, &mut Starter, &mut Effects::default());
    let ack = Frame::Ack { epoch: Epoch(1), upto: Index(1) };
    give(&mut replica, Input::Frame { from: ReplicaId(2), frame: ack });
    let (token, process) = (CallToken(1), Key::new("a").unwrap());
    for session in 1..=3 {
        let (session, principal) = (SessionId(session), "alice".into());
        let open = shard::Input::OpenSession { token, session, principal };
        replica.handle_shard(NOW, open, &mut Starter, &mut Effects::default());
        let (process, principal, read) = (process.clone(), "alice".into(), Read::Linearizable);
        let query = Query { token, process, payload: Blob::empty(), principal, read, seen: None };
        let mut out = Effects::default();
        replica.handle_shard(NOW, shard::Input::Query(query), &mut Starter, &mut out);
        assert!(out.replica.is_empty(), "{out:?}");
    }
    let mut out = Effects::default();
    replica.flush(NOW, &mut Starter, &mut out);
    let sent = out.replica.iter().map(|effect| match effect {
        Effect::Send { to: ReplicaId(2), frame: Frame::Append { entries, .. } } => entries.len(),
        Effect::Send { to: ReplicaId(2), frame: Frame::Ask(_) } => 0,
        other => panic!("{other:?}"),
    });
    assert_eq!(sent.collect::<Vec<_>>(), [0, 3]);
}

#[test]
fn entries_for_which_only_clients_wait_leave_together() {
    let mut replica = replica(Settings::default());
    give(&mut replica, lead(1, LogPoint::default(), &[1, 2], &[]));
    fn sent(replica: &mut ShardReplica, now: u64) -> Vec<usize> {
        let (now, mut out) = (Now { steady: Time(now), wall: Time(now) }, Effects::default());
        replica.handle(now, Input::Tick, &mut Starter, &mut out);
        replica.flush(now, &mut Starter, &mut out);
        let sent = out.replica.iter().filter_map(|effect| match effect {
            Effect::Send { frame: Frame::Append { entries, .. }, .. } => Some(entries.len()),
            _ => None,
        });
        sent.collect()
    }
    let open = |replica: &mut ShardReplica, session| {
        let (token, session, principal) = (CallToken(1), SessionId(session), "alice".into());
        let open = shard::Input::OpenSession { token, session, principal };
        replica.handle_shard(NOW, open, &mut Starter, &mut Effects::default());
    };
    assert_eq!(sent(&mut replica, 1), [1], "the start entry, of which all waits");
    let ack = Frame::Ack { epoch: Epoch(1), upto: Index(1) };
    give(&mut replica, Input::Frame { from: ReplicaId(2), frame: ack });
    open(&mut replica, 1);
    assert_eq!(sent(&mut replica, 1), []);
    assert_eq!(replica.deadline(), Some(Time(25)), "a quarter of max_lag");
    open(&mut replica, 2);
    assert_eq!(sent(&mut replica, 24), []);
    assert_eq!(sent(&mut replica, 25), [2]);
    assert!(replica.deadline() > Some(Time(50)), "nothing waits");
    // As soon as something else waits for them.
    open(&mut replica, 3);
    assert_eq!(sent(&mut replica, 26), []);
    let mut out = Effects::default();
    let (token, process) = (CallToken(2), Key::new("a").unwrap());
    let (principal, read) = ("alice".into(), Read::Linearizable);
    let query = Query { token, process, payload: Blob::empty(), principal, read, seen: None };
    replica.handle_shard(NOW, shard::Input::Query(query), &mut Starter, &mut out);
    assert_eq!(sent(&mut replica, 27), [1]);
    open(&mut replica, 4);
    replica.hurry();
    assert_eq!(sent(&mut replica, 28), [1], "the process ends");
}

#[test]
fn entries_leave_at_once_if_clients_wait_for_a_backup() {
    let mut replica = replica(Settings::default());
    let mut input = lead(1, LogPoint::default(), &[1, 2, 3, 4, 5], &[]);
    if let Input::Lead { record, .. } = &mut input {
        let members = record.config.members().to_vec();
        record.config = EpochConfig::parse(Epoch(1), members, 2, ReplicaId(1)).unwrap();
        assert!(record.config.is_asynchronous());
    }
    give(&mut replica, input);
    replica.flush(NOW, &mut Starter, &mut Effects::default());
    for peer in 2..=5 {
        let ack = Frame::Ack { epoch: Epoch(1), upto: Index(1) };
        give(&mut replica, Input::Frame { from: ReplicaId(peer), frame: ack });
    }
    let (token, session, principal) = (CallToken(1), SessionId(1), "alice".into());
    let mut out = Effects::default();
    replica.handle_shard(
        NOW,
        shard::Input::OpenSession { token, session, principal },
        &mut Starter,
        &mut out,
    );
    replica.flush(NOW, &mut Starter, &mut out);
    let is_frame = |effect: &&Effect| matches!(effect, Effect::Send { frame: Frame::Append { entries, .. }, .. } if entries.len() == 1);
    assert_eq!(out.replica.iter().filter(is_frame).count(), 4);
}

#[test]
fn an_operator_sees_or_finds_gone_only_what_a_round_confirms() {
    let mut replica = replica(Settings::default());
    let mut input = lead(1, LogPoint::default(), &[1, 2], &[]);
    if let Input::Lead { record, .. } = &mut input {
        let members = record.config.members().to_vec();
        record.config = EpochConfig::parse(Epoch(1), members, 2, ReplicaId(1)).unwrap();
    }
    give(&mut replica, input);
    replica.flush(NOW, &mut Starter, &mut Effects::default());
    let ack = Frame::Ack { epoch: Epoch(1), upto: Index(1) };
    give(&mut replica, Input::Frame { from: ReplicaId(2), frame: ack });
    let (process, [first, second]) = (Key::new("a").unwrap(), [1, 2].map(CallToken));
    let look = Box::new(Look::State { process: process.clone() });
    let records = vec![RecordKey::process(&process)];
    let flush = |replica: &mut ShardReplica, mut out: Effects| {
        replica.flush(NOW, &mut Starter, &mut out);
        let tokens = out.shard.into_iter().map(|effect| match effect {
            shard::Effect::Answer(answer) => answer.token,
            other => panic!("{other:?}"),
        });
        tokens.collect::<Vec<_>>()
    };
    let look = shard::Input::Look { token: first, look };
    for call in [look, shard::Input::Delete { token: second, process, records }] {
        let mut out = Effects::default();
        replica.handle_shard(NOW, call, &mut Starter, &mut out);
        assert_eq!(flush(&mut replica, out), [], "another one may lead");
    }
    for (round, answered) in [(1, first), (2, second)] {
        let mark = Mark { life: Life(1), at: Time(1) };
        let frame = Frame::Confirm { epoch: Epoch(1), round: Round(round), mark, vouches: true };
        let mut out = Effects::default();
        replica.handle(NOW, Input::Frame { from: ReplicaId(2), frame }, &mut Starter, &mut out);
        assert_eq!(flush(&mut replica, out), [answered]);
    }
}

#[test]
fn queries_that_wait_for_a_round_are_bounded_in_bytes() {
    let settings = Settings { uncommitted_bytes_max: 10_000, ..Settings::default() };
    let mut replica = replica(settings);
    give(&mut replica, lead(1, LogPoint::default(), &[1, 2], &[]));
    let ack = Frame::Ack { epoch: Epoch(1), upto: Index(1) };
    give(&mut replica, Input::Frame { from: ReplicaId(2), frame: ack });
    let mut refused = 0;
    for token in 1..=10 {
        let query = Query {
            token: CallToken(token),
            process: Key::new("a").unwrap(),
            payload: Blob::from(vec![0; 3_000]),
            principal: "alice".into(),
            read: Read::default(),
            seen: None,
        };
        let mut out = Effects::default();
        replica.handle_shard(NOW, shard::Input::Query(query), &mut Starter, &mut out);
        refused += out.shard.iter().filter(|effect| is_overload(effect)).count();
    }
    assert_eq!(refused, 6, "four are more than 10,000 bytes");
}

fn is_overload(effect: &shard::Effect) -> bool {
    let shard::Effect::Answer(answer) = effect else { return false };
    matches!(answer.result, Err(Refusal::Overloaded { .. }))
}

#[test]
fn a_confirmation_of_a_replica_that_was_not_asked_leaves_no_trace() {
    let mut topology = Topology::new(Incarnation(1));
    topology.ensure("list", 1).unwrap();
    let (name, base) = (ReplicaName { id: ReplicaId(1), life: Life(1) }, LogPoint::default());
    let limits = StreamLimits { window: 100, frame: 100, lag_max: 100, stall_max: Micros(100) };
    let (heartbeat, max_lag) = (Micros(100), Micros(100));
    let standard = ReplicaSettings::default();
    let settings = ReplicaSettings { stream: limits, tail_bytes: 0, heartbeat, max_lag, ..standard };
    let recovery = Recovery::new(State::new(ShardId(0)));
    let mut replica =
        ShardReplica::new(name, recovery, Grants::new(), Arc::new(topology), Settings::default(), settings);
    let config = EpochConfig::parse(Epoch(1), vec![ReplicaId(1), ReplicaId(2)], 2, ReplicaId(1)).unwrap();
    let (life, lease, generation, losses) = (Life(1), Micros(0), Generation(0), Losses::default());
    let earlier = BTreeMap::new();
    let record = Box::new(EpochRecord { config, life, lease, generation, base, losses, earlier });
    let now = Now { steady: Time(1), wall: Time(1) };
    let mut give = |input| replica.handle(now, input, &mut Idle, &mut Effects::default());
    give(Input::Lead { record, learners: vec![ReplicaId(3)], max_lag: Micros(100) });
    let mark = Mark { life: Life(1), at: Time(1) };
    let mut confirm = |from| {
        let frame = Frame::Confirm { epoch: Epoch(1), round: Round(0), mark, vouches: true };
        let input = Input::Frame { from: ReplicaId(from), frame };
        replica.handle(now, input, &mut Idle, &mut Effects::default());
        let Role::Leads(leading) = &replica.role else { panic!("it leads") };
        leading.rounds.clone()
    };
    let learner = confirm(3);
    assert_eq!(confirm(99), learner);
    assert_ne!(confirm(2), learner, "a member's confirmation is kept");
}
