//! Transcripts of [`Replay`] over one shard. `entry I of E` has index I and epoch E; `state` lists what was folded, as
//! index/epoch. `end` ends the first reading, `again` repeats all entries in a second one. `kept` keeps the shard, of which `log` lists the
//! snapshot and what survives behind it.

use crate::transcript;
use stead_core::blob::Blob;
use stead_core::entry::{Cause, Entry, Write};
use stead_core::ids::{Colour, Epoch, Index, ReplicaId, ShardId, Time};
use stead_core::key::Key;
use stead_core::record::RecordKey;
use stead_core::replay::Replay;
use stead_core::replication::table::LogPoint;
use stead_core::shard_replica::Recovery;
use stead_core::state::State;

const SHARD: ShardId = ShardId(0);

/// Writes down its epoch under its index, so that the state shows which entries were folded.
fn entry(index: Index, epoch: Epoch, cause: Cause) -> Vec<u8> {
    let key = RecordKey::process(&format!("{:04}", index.0));
    let value = Blob::from(epoch.0.to_string().into_bytes());
    let writes = vec![Write { key, value: Some(value) }];
    let (time, process) = (Time(index.0), Key::none());
    let entry =
        Entry { index, epoch, time, cause, process, writes, sends: Vec::new(), reply: None, served: None };
    let mut bytes = Vec::new();
    entry.encode_into(&mut bytes);
    bytes
}

fn shown(state: &State) -> String {
    let mut folded: Vec<String> = state
        .records()
        .iter()
        .map(|(key, value)| {
            let key = RecordKey::from_bytes(key).expect("written by these tests");
            let index: u64 = key.process_key().expect("a process").parse().expect("a number");
            format!("{index}/{}", String::from_utf8_lossy(value))
        })
        .collect();
    folded.sort_by_key(|text| text.split('/').next().and_then(|index| index.parse::<u64>().ok()));
    if folded.is_empty() { "nothing".to_owned() } else { folded.join(" ") }
}

/// The state of a checkpoint's part whose marker is an entry.
fn part(marker: Option<(Index, Epoch)>) -> State {
    let mut state = State::new(SHARD);
    if let Some((last, epoch)) = marker {
        for index in (1..=last.0).map(Index) {
            let cause = if index == last { Cause::Marker { colour: Colour(1) } } else { Cause::Start };
            let bytes = entry(index, epoch, cause);
            state.apply(Entry::decode(&bytes).expect("just encoded")).expect("entries in order");
        }
    }
    state
}

fn run(name: &str, text: &str) {
    let mut marker = None;
    let mut replay = Replay::new(vec![part(marker)], 1);
    let mut log: Vec<(Epoch, Index, Vec<u8>)> = Vec::new();
    transcript::replay(name, text, |words| {
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let result = match words {
            ["part", "at", ..] => {
                marker = Some((Index(number(2)), Epoch(number(4))));
                replay = Replay::new(vec![part(marker)], 1);
                return Vec::new();
            }
            [kind @ ("entry" | "marker" | "mangled"), ..] => {
                let (index, epoch) = (Index(number(1)), Epoch(number(3)));
                let bytes = match *kind {
                    "entry" => entry(index, epoch, Cause::Start),
                    "marker" => entry(index, epoch, Cause::Marker { colour: Colour(1) }),
                    _ => b"no entry".to_vec(),
                };
                let taken = replay.handle_entry(SHARD, epoch, index, &bytes);
                log.push((epoch, index, bytes));
                taken
            }
            ["install", "up", "to", ..] => {
                let base = LogPoint { epoch: Epoch(number(5)), index: Index(number(3)) };
                let taken = replay.handle_install(SHARD, Epoch(number(7)), base);
                if taken.is_ok() && marker.is_none_or(|(index, _)| index < base.index) {
                    marker = Some((base.index, base.epoch));
                }
                taken
            }
            ["kept"] => {
                replay.keep(SHARD, Some(ReplicaId::FIRST), None, u64::MAX);
                return Vec::new();
            }
            ["kept", "behind", ..] => {
                let base = LogPoint { epoch: Epoch(number(4)), index: Index(number(2)) };
                marker = Some((base.index, base.epoch));
                replay = Replay::new(vec![State::new(SHARD)], 1);
                replay.keep(SHARD, Some(ReplicaId::FIRST), Some(base), u64::MAX);
                return Vec::new();
            }
            ["log"] => {
                if replay.installed(SHARD).is_some() {
                    replay.restart(part(marker));
                }
                let ended = std::mem::replace(&mut replay, Replay::new(Vec::new(), 0)).finish();
                let [state] = <[State; 1]>::try_from(ended.states).unwrap_or_else(|_| panic!("one shard"));
                let log = ended.logs.into_iter().next().flatten().expect("it is kept");
                let snapshot = format!("behind {}", state.position().index);
                return vec![snapshot, shown(&Recovery::with_log(state, log).fold(Index(u64::MAX)))];
            }
            ["cut", "after", ..] => replay.handle_cut(SHARD, Epoch(number(4)), Index(number(2))),
            ["end"] => match replay.end_reading() {
                Ok(void) if void.is_empty() => return vec!["all folded".to_owned()],
                Ok(_) => return vec!["to be folded again".to_owned()],
                Err(error) => Err(error),
            },
            ["again"] => {
                replay.restart(part(marker));
                log.iter()
                    .try_for_each(|(epoch, index, bytes)| replay.handle_again(SHARD, *epoch, *index, bytes))
            }
            ["state"] => {
                // Ended, it asserts that it was folded to its end.
                let ended = std::mem::replace(&mut replay, Replay::new(Vec::new(), 0)).finish();
                let counts = format!("{} folded, {} skipped", ended.entries, ended.entries_skipped);
                return vec![shown(&ended.states[0]), counts];
            }
            other => panic!("{name}: {other:?} is no command"),
        };
        result.err().map(|error| error.to_string()).into_iter().collect()
    });
}

macro_rules! transcripts {
    ($($name:ident,)*) => {
        $(#[test]
        fn $name() {
            let name = concat!("testdata/replay/", stringify!($name), ".txt");
            run(name, include_str!(concat!("../testdata/replay/", stringify!($name), ".txt")));
        })*
    };
}

transcripts! {
    one_reading_folds_a_log_without_voids,
    a_higher_epoch_voids_what_stands_at_its_index_and_above,
    a_cut_voids_what_stands_above_it,
    what_is_void_may_be_unreadable,
    the_marker_is_looked_for_among_the_survivors,
    the_same_epoch_again_is_damage,
    a_lower_epoch_is_damage,
    a_gap_is_damage,
    a_cut_of_no_higher_epoch_is_damage,
    a_cut_below_the_marker_is_a_loss,
    an_entry_that_was_cut_may_come_again,
    an_install_begins_the_log_anew,
    a_checkpoint_that_is_newer_than_an_install_stands_for_it,
    what_contradicts_an_installed_snapshot_is_damage,
    what_is_kept_is_not_folded,
    what_is_kept_may_begin_from_an_installed_snapshot,
    what_is_kept_may_begin_from_a_snapshot_of_its_own,
    what_is_kept_fits_its_snapshot,
}

#[test]
fn a_shard_that_does_not_exist_is_refused() {
    let mut replay = Replay::new(vec![State::new(SHARD)], 1);
    let bytes = entry(Index(1), Epoch(1), Cause::Start);
    let error = replay.handle_entry(ShardId(1), Epoch(1), Index(1), &bytes).expect_err("there is one shard");
    assert!(error.to_string().contains("shard 1, and its topology has 1 shards"), "{error}");
}

#[test]
fn an_entry_that_names_another_place_is_refused() {
    let mut replay = Replay::new(vec![State::new(SHARD)], 1);
    let bytes = entry(Index(2), Epoch(1), Cause::Start);
    replay.handle_entry(SHARD, Epoch(1), Index(1), &bytes).expect("its contents count only if it survives");
    let error = replay.end_reading().expect_err("it survives");
    assert!(error.to_string().contains("entry 2 of shard 0 stands in the log as entry 1"), "{error}");
}

#[test]
fn a_second_reading_counts_no_entry_of_other_shards_again() {
    let (folded, void) = (SHARD, ShardId(1));
    let mut replay = Replay::new(vec![part(Some((Index(2), Epoch(1)))), State::new(void)], 2);
    let marker = Cause::Marker { colour: Colour(1) };
    let log = [
        (folded, 1, 1, Cause::Start),
        (folded, 1, 2, marker),
        (folded, 1, 3, Cause::Start),
        (void, 1, 1, Cause::Start),
        (void, 1, 2, Cause::Start),
        (void, 2, 2, Cause::Start),
    ];
    let log = log.map(|(shard, epoch, index, cause)| {
        let (epoch, index) = (Epoch(epoch), Index(index));
        (shard, epoch, index, entry(index, epoch, cause))
    });
    for (shard, epoch, index, bytes) in &log {
        replay.handle_entry(*shard, *epoch, *index, bytes).expect("a log can hold it");
    }
    assert_eq!(replay.end_reading().expect("it can be folded"), [void]);
    assert_eq!(replay.states().iter().map(State::shard).collect::<Vec<_>>(), [folded, void]);
    replay.restart(State::new(void));
    for (shard, epoch, index, bytes) in &log {
        replay.handle_again(*shard, *epoch, *index, bytes).expect("it can be folded");
    }
    let ended = replay.finish();
    assert_eq!([shown(&ended.states[0]), shown(&ended.states[1])], ["1/1 2/1 3/1", "1/1 2/2"]);
    assert_eq!((ended.entries, ended.entries_skipped), (3, 2));
}
