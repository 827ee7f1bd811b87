//! Transcripts of [`LogRoom`]. `next` asks for the next step; the other lines are events. Times are in ms, sizes in
//! KiB.

use crate::transcript::replay;
use stead_core::durability::Durability;
use stead_core::ids::Time;
use stead_core::log_room::{Event, LogRoom, Notice, Step};

fn run(name: &str, text: &str) {
    let mut now = Time(0);
    let mut room: Option<LogRoom> = None;
    replay(name, text, |words| {
        let appended = |has_promise, durability| Event::Appended { has_promise, durability };
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let event = match words {
            ["log", "of", _, rest @ ..] => {
                let markers = match rest {
                    ["markers", _] => number(4) << 10,
                    _ => 0,
                };
                room = Some(LogRoom::new(number(2) << 10, markers, now));
                return Vec::new();
            }
            ["at", _] => {
                now = Time(0).plus_millis(number(1));
                return Vec::new();
            }
            ["next"] => {
                let room = room.as_mut().expect("begins with a log");
                return vec![match room.step(now) {
                    Step::Sleep(None) => "sleep".to_owned(),
                    Step::Sleep(Some(until)) => format!("sleep until {}", until.0 / 1000),
                    Step::GiveUp => "give up".to_owned(),
                    step => format!("{step:?}").to_lowercase(),
                }];
            }
            ["room", _, "next", _, rest @ ..] => Event::Room {
                reserve: number(1) << 10,
                segment_bytes_next: number(3) << 10,
                wants_segment: rest == ["wanted"],
            },
            ["submitted"] => Event::Submitted,
            ["trim", "wanted"] => Event::TrimWanted,
            ["ending"] => Event::Ending,
            ["closed"] => Event::Closed,
            ["trimmed", _] => Event::Trimmed { segments: number(1) as usize },
            ["appended"] => appended(false, Durability::Always),
            ["appended", "relaxed"] => appended(false, Durability::Interval),
            ["appended", "never"] => appended(false, Durability::Never),
            ["sync", "wanted"] => Event::SyncWanted,
            ["appended", "with", "a", "promise"] => appended(true, Durability::Always),
            ["no", "space"] => Event::NoSpace,
            ["synced"] => Event::Synced,
            ["marked"] => Event::Marked(true),
            ["not", "marked"] => Event::Marked(false),
            ["prepared"] => Event::Prepared { is_short: false },
            ["short"] => Event::Prepared { is_short: true },
            other => panic!("{name}: {other:?} is no command"),
        };
        let room = room.as_mut().expect("begins with a log");
        room.handle(now, event);
        let mut gave = Vec::new();
        while let Some(notice) = room.poll_notice() {
            gave.push(match notice {
                Notice::Full(true) if room.is_spent() => "full and spent".to_owned(),
                Notice::Full(true) => "full".to_owned(),
                Notice::Full(false) => "room again".to_owned(),
                Notice::Prepare => "prepare".to_owned(),
            });
        }
        if room.wants_room() {
            gave.push("room?".to_owned());
        }
        gave
    });
}

macro_rules! transcripts {
    ($($name:ident,)*) => {
        $(#[test]
        fn $name() {
            let name = concat!("testdata/log_room/", stringify!($name), ".txt");
            run(name, include_str!(concat!("../testdata/log_room/", stringify!($name), ".txt")));
        })*
    };
}

transcripts! {
    one_sync_for_many,
    a_trim_comes_before_the_append_that_needs_its_room,
    only_a_written_mark_counts,
    a_promise_is_marked_at_once,
    full_comes_before_the_last_reserve,
    short_segments_leave_the_reserve_of_long_ones,
    the_last_reserve_has_room_for_the_markers_on_their_way,
    a_refused_append_is_tried_again,
    a_log_ends_with_all_durable,
    what_may_wait_is_synced_later,
}

#[test]
#[should_panic(expected = "only a step that was given out is reported")]
fn a_mark_that_was_not_asked_for_does_not_count() {
    let mut room = LogRoom::new(64 << 10, 0, Time(0));
    room.handle(Time(0), Event::Marked(true));
}

#[test]
#[should_panic(expected = "a step is reported before the next one is given out")]
fn what_was_appended_is_reported() {
    let mut room = LogRoom::new(64 << 10, 0, Time(0));
    room.handle(
        Time(0),
        Event::Room { reserve: 64 << 10, segment_bytes_next: 16 << 10, wants_segment: false },
    );
    room.handle(Time(0), Event::Submitted);
    assert_eq!(room.step(Time(0)), Step::Append);
    room.step(Time(0));
}
