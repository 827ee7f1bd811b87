//! Transcripts of [`Shutdown`]. `next` asks for the next step; the other lines are events. Times are in ms.

use crate::transcript::replay;
use stead_core::ids::Time;
use stead_core::shutdown::{Event, Group, Shutdown, Step};

fn name_of(group: Group) -> String {
    format!("{group:?}").to_lowercase()
}

fn run(name: &str, text: &str) {
    let mut now = Time(0);
    let mut shutdown: Option<Shutdown> = None;
    replay(name, text, |words| {
        let time = |at: usize| Time(0).plus_millis(words[at].parse().expect("a number"));
        let mut handle = |event: Event| shutdown.as_mut().expect("begins with a shutdown").handle(now, event);
        match words {
            ["shutdown", "until", _] => shutdown = Some(Shutdown::new(time(2))),
            ["at", _] => now = time(1),
            ["ended", group] => {
                let group = Group::ORDER.into_iter().find(|it| name_of(*it) == *group);
                handle(Event::Ended(group.expect("a group")));
            }
            ["ends", "itself"] => handle(Event::EndsItself),
            ["failed"] => handle(Event::Failed),
            ["killed", "until", _] => handle(Event::Killed(time(2))),
            ["next"] => {
                return vec![match shutdown.as_mut().expect("begins with a shutdown").step(now) {
                    Step::Stop(group) => format!("stop {}", name_of(group)),
                    Step::StopAll => "stop all".to_owned(),
                    Step::Await(group, None) => format!("await {}", name_of(group)),
                    Step::Await(group, Some(until)) => {
                        format!("await {} until {}", name_of(group), until.0 / 1000)
                    }
                    Step::Abandon(group) => format!("abandon {}", name_of(group)),
                    Step::MarkClean => "mark clean".to_owned(),
                    Step::Finish => "finish".to_owned(),
                }];
            }
            other => panic!("{name}: {other:?} is no command"),
        }
        Vec::new()
    });
}

macro_rules! transcripts {
    ($($name:ident,)*) => {
        $(#[test]
        fn $name() {
            let name = concat!("testdata/shutdown/", stringify!($name), ".txt");
            run(name, include_str!(concat!("../testdata/shutdown/", stringify!($name), ".txt")));
        })*
    };
}

transcripts! {
    in_order,
    what_runs_too_long_is_abandoned,
    a_failure_stops_all_at_once,
    a_kill_leaves_the_data_unmarked,
    code_that_ends_its_node_leaves_the_data_unmarked,
    a_kill_does_not_wait_as_long_as_the_shutdown_that_it_meets,
}

#[test]
#[should_panic(expected = "groups end in their order")]
fn the_log_does_not_end_before_the_workers() {
    let mut shutdown = Shutdown::new(Time(0));
    shutdown.step(Time(0));
    shutdown.handle(Time(0), Event::Ended(Group::Log));
}
