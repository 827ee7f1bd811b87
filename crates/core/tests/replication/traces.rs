//! One replica that is driven by hand: what it does with inputs that come late or are wrong.

use crate::world::{Lister, SETTINGS, SHARD, take_written};
use std::collections::BTreeMap;
use std::sync::Arc;
use stead_core::blob::Blob;
use stead_core::calls::{Identity, Refusal, Request};
use stead_core::clock::Now;
use stead_core::commit_tracker::EpochConfig;
use stead_core::entry::{Cause, Entry};
use stead_core::ids::{
    CallToken, Colour, Epoch, Generation, Incarnation, Index, Life, Micros, ReplicaId, RequestNumber, Round,
    SessionId, Time,
};
use stead_core::key::Key;
use stead_core::replication::epoch::{Ask, EpochRecord, Mark, Seal};
use stead_core::replication::lease::Grants;
use stead_core::replication::replica::AppendHead;
use stead_core::replication::table::{EpochTable, LogPoint, Losses};
use stead_core::shard::{self, Settings, Shard};
use stead_core::shard_replica::{
    Effect, Effects, Frame, Input, LogEntry, Record, Recovery, ReplicaLog, ReplicaName, ReplicaSettings,
    ShardReplica,
};
use stead_core::state::{Misfit, State};
use stead_core::topology::Topology;

const ONE: ReplicaId = ReplicaId(1);
const TWO: ReplicaId = ReplicaId(2);
const THREE: ReplicaId = ReplicaId(3);

fn at(epoch: u64, index: u64) -> LogPoint {
    LogPoint { epoch: Epoch(epoch), index: Index(index) }
}

fn recovery(log: &[LogEntry]) -> Recovery {
    let mut recovery = Recovery::new(State::new(SHARD));
    log.iter().for_each(|entry| recovery.handle_record(Record::Entry(entry.clone())));
    recovery
}

/// A replica in its first life whose log holds these entries.
fn replica(id: ReplicaId, log: &[LogEntry]) -> ShardReplica {
    started(id, recovery(log))
}

fn started(id: ReplicaId, recovery: Recovery) -> ShardReplica {
    // Nothing committed stays in memory.
    started_as(id, recovery, ReplicaSettings { tail_bytes: 0, apply_bytes: u64::MAX, ..SETTINGS })
}

fn started_as(id: ReplicaId, recovery: Recovery, settings: ReplicaSettings) -> ShardReplica {
    let mut topology = Topology::new(Incarnation(1));
    topology.ensure("list", 1).unwrap();
    let name = ReplicaName { id, life: Life(1) };
    ShardReplica::new(name, recovery, Grants::new(), Arc::new(topology), Settings::default(), settings)
}

fn give_whole(replica: &mut ShardReplica, input: Input) -> Effects {
    let mut out = Effects::default();
    let now = Now { steady: Time(1_000), wall: Time(1_000) };
    replica.handle(now, input, &mut Lister, &mut out);
    replica.flush(now, &mut Lister, &mut out);
    out
}

fn give(replica: &mut ShardReplica, input: Input) -> Vec<Effect> {
    give_whole(replica, input).replica
}

/// Gives a replica an input, and makes durable what it writes.
fn give_and_sync(replica: &mut ShardReplica, input: Input) -> Vec<Effect> {
    let mut out = give_whole(replica, input);
    let records = out.log_records();
    assert!(records > 0, "{out:?}");
    out.replica.extend(give(replica, Input::Durable(records)));
    out.replica
}

/// The first one of the members is to lead an epoch that any two of three members commit in, or a single one.
fn lead(epoch: u64, base: LogPoint, members: &[ReplicaId]) -> Input {
    let acks = members.len() / 2 + 1;
    let config = EpochConfig::parse(Epoch(epoch), members.to_vec(), acks, members[0]).unwrap();
    let (life, lease) = (Life(1), Micros(0));
    let (generation, losses, earlier) = (Generation(0), Losses::default(), BTreeMap::new());
    let record = Box::new(EpochRecord { config, life, lease, generation, base, losses, earlier });
    Input::Lead { record, learners: Vec::new(), max_lag: Micros(1) }
}

/// A log of the start entries of these epochs.
fn log(epochs: &[u64]) -> Vec<LogEntry> {
    let mut log: Vec<LogEntry> = Vec::new();
    for epoch in epochs {
        let base = log.last().map_or(LogPoint::default(), |last| last.point);
        let mut effects = give_whole(&mut replica(ONE, &log), lead(*epoch, base, &[ONE]));
        log.extend(take_written(&mut effects).into_iter().filter_map(|record| match record {
            Record::Entry(entry) => Some(entry),
            _ => None,
        }));
    }
    log
}

/// A frame of the primary of an epoch.
fn append(from: ReplicaId, epoch: u64, before: LogPoint, commit: u64, entries: &[LogEntry]) -> Input {
    let head = AppendHead { epoch: Epoch(epoch), before, commit: Index(commit) };
    Input::Frame { from, frame: Frame::Append { head, record: None, entries: entries.to_vec() } }
}

/// A primary of epoch 4 whose entries are committed and no longer in memory, and reads them for a peer with an empty log.
fn reads_for_a_peer() -> (ShardReplica, AppendHead) {
    let mut replica = replica(ONE, &log(&[1, 2, 3]));
    give_and_sync(&mut replica, lead(4, at(3, 3), &[ONE, TWO, THREE]));
    let answer = |from, frame| Input::Frame { from, frame };
    give(&mut replica, answer(THREE, Frame::Ack { epoch: Epoch(4), upto: Index(4) }));
    assert_eq!(replica.replica().commit(), Index(4));
    let differs = Frame::Diverged { epoch: Epoch(4), table: EpochTable::default() };
    let effects = give(&mut replica, answer(TWO, differs));
    let [Effect::ReadLog { to: TWO, head, .. }] = effects[..] else { panic!("{effects:?}") };
    (replica, head)
}

#[test]
fn entries_that_were_trimmed_while_they_were_read_are_replaced_by_a_snapshot() {
    for entries in [log(&[1, 2]), Vec::new()] {
        let (mut replica, head) = reads_for_a_peer();
        give(&mut replica, Input::Trimmed(at(3, 3)));
        let effects = give(&mut replica, Input::LogRead { to: TWO, head, entries });
        assert!(matches!(effects[..], [Effect::SendSnapshot { to: TWO }]), "{effects:?}");
        assert_eq!(replica.snapshot_sent(), None);
        give(&mut replica, Input::SnapshotSent { to: TWO, base: at(3, 3) });
        assert_eq!(replica.snapshot_sent(), Some(at(3, 3)));
    }
}

#[test]
fn entries_that_were_read_are_sent() {
    let (mut replica, head) = reads_for_a_peer();
    let effects = give(&mut replica, Input::LogRead { to: TWO, head, entries: log(&[1, 2]) });
    let [Effect::Send { to: TWO, frame: Frame::Append { entries, .. } }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(entries.len(), 2);
}

#[test]
fn a_late_report_of_a_trim_changes_nothing() {
    let mut replica = replica(TWO, &log(&[1, 2, 3]));
    give(&mut replica, append(ONE, 3, at(3, 3), 3, &[]));
    for (trimmed, base) in
        [(at(2, 2), at(2, 2)), (at(1, 1), at(2, 2)), (at(2, 2), at(2, 2)), (at(3, 3), at(3, 3))]
    {
        give(&mut replica, Input::Trimmed(trimmed));
        assert_eq!(replica.replica().table().base(), base);
    }
}

/// A deposed primary of epoch 1 whose log was cut below its state by that of epoch 2, so that it asks for a state.
fn rebuilds() -> ShardReplica {
    let mut replica = replica(ONE, &[]);
    give_and_sync(&mut replica, lead(1, LogPoint::default(), &[ONE, TWO, THREE]));
    let effects = give_and_sync(&mut replica, append(TWO, 2, LogPoint::default(), 0, &log(&[2])));
    let is_asked =
        |effect: &Effect| matches!(effect, Effect::Rebuild { number: 1, from: Index(0), upto: Index(0) });
    assert!(effects.iter().any(is_asked), "{effects:?}");
    replica
}

/// A replica that has only the last of these entries in memory.
fn left_in_the_log(id: ReplicaId, entries: &[LogEntry]) -> ShardReplica {
    let mut log = ReplicaLog::new(LogPoint::default(), entries.last().unwrap().bytes.len() as u64 + 64);
    entries.iter().for_each(|entry| log.handle_record(Record::Entry(entry.clone())));
    started(id, Recovery::with_log(State::new(SHARD), log))
}

#[test]
fn entries_that_a_start_left_in_the_log_are_folded_once_they_are_committed() {
    let log = log(&[1, 2, 3, 4]);
    let mut replica = left_in_the_log(THREE, &log);
    let effects = give(&mut replica, append(ONE, 4, at(4, 4), 2, &[]));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Rebuild { .. })), "{effects:?}");
    let effects = give(&mut replica, append(ONE, 4, at(4, 4), 3, &[]));
    let is_asked =
        |effect: &Effect| matches!(effect, Effect::Rebuild { number: 1, from: Index(3), upto: Index(3) });
    assert!(effects.iter().any(is_asked), "{effects:?}");
    give(&mut replica, append(ONE, 4, at(4, 4), 4, &[]));
    give(&mut replica, rebuilt(1, &log[..3]));
    assert_eq!(replica.committed_state().map(|state| state.position().index), Some(Index(4)));
}

#[test]
fn a_primary_folds_what_a_start_left_in_the_log_up_to_its_base() {
    let entries = log(&[1, 2, 3, 4]);
    for base in [2, 3, 4] {
        let mut replica = left_in_the_log(ONE, &entries);
        let effects = give(&mut replica, lead(5, at(base, base), &[ONE, TWO, THREE]));
        let from = Index(base.min(3));
        let [Effect::Rebuild { number: 1, from: asked, upto: Index(upto) }] = effects[..] else {
            panic!("{effects:?}")
        };
        assert_eq!((asked, upto), (from, base));
        give(&mut replica, rebuilt(1, &entries[..base as usize]));
        assert_eq!(replica.replica().leads(), Some(Epoch(5)));
        assert_eq!(replica.replica().table().last(), at(5, base + 1));
    }
}

/// The control plane prefers another primary: this one would lead only once it has its state.
#[test]
fn a_seal_is_answered_with_whether_the_state_is_being_folded() {
    let is_folding = |replica: &mut ShardReplica, epoch| {
        let effects = give_and_sync(replica, Input::Seal(Seal { epoch: Epoch(epoch), lease: Micros(0) }));
        let answer = effects.into_iter().find_map(|effect| match effect {
            Effect::Sealed(answer) => Some(answer),
            _ => None,
        });
        answer.expect("the seal is answered").is_folding
    };
    let mut deposed = rebuilds();
    assert!(is_folding(&mut deposed, 3));
    give(&mut deposed, rebuilt(1, &[]));
    assert!(!is_folding(&mut deposed, 4));

    let log = log(&[1, 2]);
    let mut started = left_in_the_log(ONE, &log);
    assert!(is_folding(&mut started, 3));
    give(&mut started, lead(4, at(1, 1), &[ONE, TWO, THREE]));
    give_and_sync(&mut started, rebuilt(1, &log[..1]));
    assert!(!is_folding(&mut started, 5), "it has led");
}

/// Entries that were left in the log are not known to be committed, so another primary may cut them.
#[test]
fn entries_that_a_start_left_in_the_log_may_be_cut() {
    let mut replica = left_in_the_log(THREE, &log(&[1, 2, 3, 4]));
    let other = log(&[1, 5]);
    let effects = give_and_sync(&mut replica, append(TWO, 5, at(1, 1), 2, &other[1..]));
    assert_eq!(replica.replica().table().last(), at(5, 2));
    let is_asked =
        |effect: &Effect| matches!(effect, Effect::Rebuild { number: 1, from: Index(1), upto: Index(2) });
    assert!(effects.iter().any(is_asked), "{effects:?}");
    give(&mut replica, rebuilt(1, &other[..1]));
    assert_eq!(replica.committed_state().map(|state| state.position().index), Some(Index(2)));
    // While a primary-to-be waits for what it lacks.
    let mut replica = left_in_the_log(ONE, &log(&[1, 2, 3, 4]));
    give(&mut replica, lead(5, at(4, 4), &[ONE, TWO, THREE]));
    let effects = give_and_sync(&mut replica, append(TWO, 6, at(1, 1), 0, &log(&[1, 6])[1..]));
    let is_asked = |effect: &Effect| matches!(effect, Effect::Rebuild { number: 2, upto: Index(0), .. });
    assert!(effects.iter().any(is_asked), "{effects:?}");
}

/// A primary without peers keeps nothing in memory that it could go back to.
#[test]
fn the_state_of_a_lone_primary_whose_log_is_cut_is_folded_anew() {
    let mut replica = replica(ONE, &[]);
    let mut written = take_written(&mut give_whole(&mut replica, lead(1, LogPoint::default(), &[ONE])));
    give(&mut replica, Input::Durable(written.len()));
    for session in [1_u8, 2] {
        let (token, session) = (CallToken(session.into()), SessionId(session.into()));
        let mut out = Effects::default();
        let input = shard::Input::OpenSession { token, session, principal: "alice".into() };
        replica.handle_shard(Now { steady: Time(1_000), wall: Time(1_000) }, input, &mut Lister, &mut out);
        written.extend(take_written(&mut out));
    }
    let entries: Vec<LogEntry> = written
        .into_iter()
        .filter_map(|record| match record {
            Record::Entry(entry) => Some(entry),
            _ => None,
        })
        .collect();
    assert_eq!((replica.replica().commit(), entries[2].point), (Index(1), at(1, 3)));
    // An operator went on with another replica, which had the first two.
    let mut other = Entry::decode(&log(&[2])[0].bytes).unwrap();
    other.index = Index(3);
    let mut bytes = Vec::new();
    other.encode_into(&mut bytes);
    let other = LogEntry { point: at(2, 3), bytes: Blob::from(bytes) };
    let effects = give(&mut replica, append(TWO, 2, at(1, 2), 0, &[other]));
    let asks = |effects: &[Effect], wanted: (u64, u64)| {
        let is_asked = |effect: &Effect| matches!(effect, Effect::Rebuild { number, upto: Index(upto), .. } if (*number, *upto) == wanted);
        assert!(effects.iter().any(is_asked), "{effects:?}");
    };
    asks(&effects, (1, 1));
    give(&mut replica, rebuilt(1, &entries[..1]));
    assert_eq!(replica.committed_state().map(|state| state.position().index), Some(Index(1)));
    asks(&give(&mut replica, append(TWO, 2, at(2, 3), 3, &[])), (2, 3));
    give(&mut replica, rebuilt(2, &entries[..2]));
    assert_eq!(replica.committed_state().map(|state| state.position().index), Some(Index(3)));
}

/// So that a backup which catches up does not hold the other shards of its worker.
#[test]
fn a_backup_applies_a_slice_of_what_is_committed_and_the_rest_with_ticks_17() {
    let entries = log(&[1, 2, 3, 4, 5, 6]);
    let settings = ReplicaSettings { tail_bytes: 0, apply_bytes: 1, ..SETTINGS };
    let mut replica = started_as(ONE, recovery(&[]), settings);
    give_and_sync(&mut replica, append(TWO, 6, LogPoint::default(), 0, &entries));
    assert_eq!(replica.deadline(), None);
    give(&mut replica, append(TWO, 6, at(6, 6), 6, &[]));
    let applied = |replica: &ShardReplica| replica.committed_state().unwrap().position().index.0;
    for index in 1..6 {
        assert_eq!((applied(&replica), replica.deadline()), (index, Some(Time(0))));
        give(&mut replica, Input::Tick);
    }
    assert_eq!((applied(&replica), replica.deadline()), (6, None));
}

#[test]
fn entries_of_an_older_history_than_the_snapshot_do_not_count() {
    let log = log(&[1, 2, 3]);
    let older = |index| Record::Entry(LogEntry { point: at(1, index), bytes: Blob::empty() });
    let mut records = ReplicaLog::new(at(2, 2), u64::MAX);
    records.handle_record(Record::Entry(log[0].clone()));
    (2..=4).for_each(|index| records.handle_record(older(index)));
    log[1..].iter().for_each(|entry| records.handle_record(Record::Entry(entry.clone())));
    let replica = started(ONE, Recovery::with_log(recovery(&log).fold(Index(2)), records));
    assert_eq!((replica.replica().table().base(), replica.replica().table().last()), (at(2, 2), at(3, 3)));
}

fn installed(from: ReplicaId, log: &[LogEntry]) -> Input {
    let base = log.last().unwrap().point;
    Input::Installed { from, epoch: base.epoch, base, state: Box::new(recovery(log).fold(base.index)) }
}

fn rebuilt(number: u64, log: &[LogEntry]) -> Input {
    Input::Rebuilt { number, state: Box::new(recovery(log).fold(Index(log.len() as u64))) }
}

#[test]
fn a_state_that_was_asked_for_before_an_install_is_ignored() {
    let mut replica = rebuilds();
    give_and_sync(&mut replica, installed(THREE, &log(&[3])));
    give_and_sync(&mut replica, lead(4, at(3, 1), &[ONE, TWO, THREE]));
    give_and_sync(&mut replica, append(TWO, 5, at(3, 1), 0, &log(&[3, 5])[1..]));
    give(&mut replica, rebuilt(1, &[]));
    assert!(replica.committed_state().is_none(), "the newest state is still awaited");
    give(&mut replica, rebuilt(2, &log(&[3])));
    assert_eq!(replica.committed_state().map(|state| state.position().index), Some(Index(1)));
}

#[test]
fn an_epoch_that_waits_for_a_state_begins_with_an_installed_one() {
    let mut replica = rebuilds();
    give(&mut replica, lead(4, at(3, 1), &[ONE, TWO, THREE]));
    give(&mut replica, installed(THREE, &log(&[3])));
    assert_eq!(replica.replica().leads(), Some(Epoch(4)));
}

#[test]
fn the_highest_of_the_epochs_that_wait_for_a_state_begins() {
    let mut replica = rebuilds();
    for epoch in [3, 5, 4] {
        give(&mut replica, lead(epoch, LogPoint::default(), &[ONE, TWO, THREE]));
    }
    give(&mut replica, rebuilt(1, &[]));
    assert_eq!(replica.replica().leads(), Some(Epoch(5)));
}

#[test]
fn a_frame_that_contradicts_what_is_committed_is_reported_and_not_acknowledged() {
    let mut replica = replica(THREE, &log(&[1, 2]));
    give(&mut replica, append(ONE, 2, at(2, 2), 2, &[]));
    let effects = give(&mut replica, append(TWO, 3, at(1, 1), 0, &log(&[1, 3])[1..]));
    let [Effect::GivenUp { from: TWO, epoch: Epoch(3) }, Effect::Invalid { from: TWO, .. }] = effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(replica.replica().promised(), Epoch(2));
}

#[test]
fn a_replica_whose_state_an_entry_does_not_fit_handles_nothing_any_more() {
    let mut log = log(&[1]);
    let mut contents = Entry::decode(&log[0].bytes).unwrap();
    // Colours begin behind 0.
    contents.cause = Cause::Marker { colour: Colour(0) };
    let mut bytes = Vec::new();
    contents.encode_into(&mut bytes);
    log[0].bytes = Blob::from(bytes);

    let mut follower = replica(THREE, &[]);
    let effects = give(&mut follower, append(ONE, 1, LogPoint::default(), 1, &log));
    assert!(matches!(effects.last(), Some(Effect::Unusable(Misfit::Colour { .. }))), "{effects:?}");
    assert!(follower.committed_state().is_none());
    assert!(give(&mut follower, Input::Durable(1)).is_empty());

    let mut primary = replica(ONE, &log);
    let effects = give(&mut primary, lead(2, at(1, 1), &[ONE]));
    assert!(matches!(effects.last(), Some(Effect::Unusable(Misfit::Colour { .. }))), "{effects:?}");
    assert!(primary.shard().is_none());
}

#[test]
fn the_first_frame_on_each_connection_has_the_record() {
    let mut primary = replica(ONE, &[]);
    let Input::Lead { record, .. } = lead(1, LogPoint::default(), &[ONE, TWO]) else { unreachable!() };
    let mut sent = |input| {
        let frames = give_whole(&mut primary, input).replica.into_iter().filter_map(|effect| match effect {
            Effect::Send { to: TWO, frame: Frame::Append { head, record, entries } } => {
                Some(Frame::Append { head, record, entries })
            }
            _ => None,
        });
        let frames: Vec<Frame> = frames.collect();
        let has_record: Vec<bool> =
            frames.iter().map(|frame| matches!(frame, Frame::Append { record: Some(_), .. })).collect();
        (frames, has_record)
    };
    let (first, has_record) =
        sent(Input::Lead { record: record.clone(), learners: Vec::new(), max_lag: Micros(1) });
    assert_eq!(has_record, [true]);
    let stored = |member| Frame::Ack { epoch: Epoch(1), upto: Index(member) };
    let (_, has_record) = sent(Input::Frame { from: TWO, frame: stored(1) });
    assert!(!has_record.contains(&true), "it has it");
    let (_, has_record) = sent(Input::Connected(TWO));
    assert_eq!(has_record, [true], "the frames before may be lost");

    let mut backup = replica(TWO, &[]);
    let Some(Frame::Append { head, entries, .. }) = first.first().cloned() else { unreachable!() };
    let other = AppendHead { epoch: Epoch(2), ..head };
    for (from, head) in [(THREE, head), (ONE, other)] {
        let frame = Frame::Append { head, record: Some(record.clone()), entries: entries.clone() };
        let effects = give(&mut backup, Input::Frame { from, frame });
        assert!(matches!(effects[..], [Effect::Invalid { .. }]), "{effects:?}");
    }
    assert_eq!((backup.record(), backup.replica().promised()), (None, Epoch(0)));
    give(&mut backup, Input::Frame { from: ONE, frame: first[0].clone() });
    assert_eq!(backup.record(), Some(&*record));

    let mut promised = replica(TWO, &log(&[2]));
    let effects = give(&mut promised, Input::Frame { from: ONE, frame: first[0].clone() });
    assert!(matches!(effects[..], [Effect::Send { frame: Frame::Refuse { .. }, .. }]), "{effects:?}");
    assert_eq!(promised.record(), None, "that epoch is over");
}

#[test]
fn a_backup_asks_its_primary_again_over_a_new_connection() {
    let mut backup = replica(TWO, &[]);
    let effects = give_and_sync(&mut backup, append(ONE, 1, LogPoint::default(), 0, &log(&[1])));
    assert!(matches!(effects[..], [.., Effect::Send { to: ONE, frame: Frame::Ack { .. } }]), "{effects:?}");
    assert!(give(&mut backup, Input::Connected(THREE)).is_empty(), "it has no primary there");
    // The acknowledgement may be lost, and the primary sends nothing before it has it.
    let effects = give(&mut backup, Input::Connected(ONE));
    let [Effect::Send { to: ONE, frame: Frame::Diverged { epoch: Epoch(1), table } }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(table.last(), at(1, 1));
}

#[test]
fn a_primary_vouches_for_its_life_once_it_leads_no_more_and_suspected_nothing() {
    let vouches = |replica: &mut ShardReplica| {
        let ask = Ask { epoch: Epoch(2), round: Round(1), lease: Micros(0), fresh: None };
        let effects = give(replica, Input::Frame { from: TWO, frame: Frame::Ask(ask) });
        effects.into_iter().find_map(|effect| match effect {
            Effect::Send { to: TWO, frame: Frame::Confirm { vouches, .. } } => Some(vouches),
            _ => None,
        })
    };
    let led_after = |earlier: &[(ReplicaId, Life)]| {
        let mut one = replica(ONE, &[]);
        let Input::Lead { mut record, learners, max_lag } = lead(1, at(0, 0), &[ONE, TWO, THREE]) else {
            unreachable!("it is one")
        };
        record.earlier = earlier.iter().copied().collect();
        give_and_sync(&mut one, Input::Lead { record, learners, max_lag });
        let still = vouches(&mut one);
        give(&mut one, append(TWO, 2, at(0, 0), 0, &[]));
        (still, vouches(&mut one))
    };
    assert_eq!(led_after(&[]), (Some(false), Some(true)));
    assert_eq!(led_after(&[(THREE, Life(1))]), (Some(false), Some(false)), "it suspected requests");
    assert_eq!(vouches(&mut replica(ONE, &[])), Some(true), "it led nothing");
}

#[test]
fn a_refusal_that_a_session_is_unknown_waits_for_a_confirmed_round() {
    let mut primary = replica(ONE, &[]);
    give_and_sync(&mut primary, lead(1, LogPoint::default(), &[ONE, TWO, THREE]));
    let stored = Frame::Ack { epoch: Epoch(1), upto: Index(1) };
    give(&mut primary, Input::Frame { from: TWO, frame: stored });
    assert_eq!(primary.shard().map(Shard::commit), Some(Index(1)));
    let identity =
        Identity::Session { session: SessionId(9), number: RequestNumber(1), confirmed: RequestNumber(0) };
    let request = Request {
        token: CallToken(5),
        process: Key::new("a").unwrap(),
        payload: Blob::from(&b"x"[..]),
        principal: "alice".into(),
        identity,
        colour: Colour(0),
        seen: None,
        is_first: false,
    };
    let mut out = Effects::default();
    let now = Now { steady: Time(1_000), wall: Time(1_000) };
    primary.handle_shard(now, shard::Input::Request(request), &mut Lister, &mut out);
    primary.flush(now, &mut Lister, &mut out);
    let is_answer = |effect: &shard::Effect| matches!(effect, shard::Effect::Answer(_));
    assert!(!out.shard.iter().any(is_answer), "another primary may have opened it: {out:?}");
    let asked = out.replica.iter().find_map(|effect| match effect {
        Effect::Send { to: TWO, frame: Frame::Ask(ask) } => Some(ask.round),
        _ => None,
    });
    let mark = Mark { life: Life(1), at: Time(0) };
    let frame = Frame::Confirm { epoch: Epoch(1), round: asked.unwrap(), mark, vouches: true };
    let out = give_whole(&mut primary, Input::Frame { from: TWO, frame });
    let [shard::Effect::Answer(answer)] = &out.shard[..] else { panic!("{out:?}") };
    assert_eq!((answer.token, &answer.result), (CallToken(5), &Err(Refusal::UnknownSession(SessionId(9)))));
}
