//! Runs of clusters that are short enough for every test run; `stead-sim run --nodes N` covers more.

use stead_sim::{ClusterBug, ClusterConfig, ClusterMark, ClusterMarks, run_cluster};

/// Events of a run before it is healed.
const EVENTS: u64 = 10_000;

fn config(seed: u64, nodes: usize, bug: Option<ClusterBug>) -> ClusterConfig {
    ClusterConfig { seed, nodes, events: EVENTS, bug, trace: false }
}

#[test]
fn clusters_keep_every_answer_and_message() {
    let mut marks = ClusterMarks::default();
    let lacks = |marks: &ClusterMarks| {
        let often = ClusterMark::ALL.into_iter().filter(|mark| !RARE.contains(mark));
        often.filter(|mark| marks.count(*mark) == 0).map(ClusterMark::text).collect::<Vec<_>>()
    };
    for seed in 1..=90 {
        if seed > 20 && lacks(&marks).is_empty() {
            break;
        }
        let nodes = 1 + seed as usize % 5;
        match run_cluster(config(seed, nodes, None)) {
            Ok(report) => marks.add(&report.marks),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{marks}");
    assert!(lacks(&marks).is_empty(), "none of {:?}", lacks(&marks));
}

/// Marks that take more seeds than these.
const RARE: [ClusterMark; 11] = [
    ClusterMark::TrimmedBesideTransfer,
    ClusterMark::CrashInRecovery,
    ClusterMark::SnapshotSent,
    ClusterMark::Installed,
    ClusterMark::DiskLost,
    ClusterMark::ForwardedOverTwo,
    ClusterMark::Lost,
    ClusterMark::LossReported,
    ClusterMark::PausedLease,
    ClusterMark::WentOnInDoubt,
    ClusterMark::CommittedLost,
];

/// In the runs of these seeds replicas may acknowledge before they sync.
#[test]
fn shards_go_on_after_power_cuts_that_took_what_was_acknowledged() {
    let mut marks = ClusterMarks::default();
    let wanted = [ClusterMark::WentOnInDoubt, ClusterMark::CommittedLost];
    for seed in (3..400).step_by(4) {
        let nodes = 1 + seed as usize / 4 % 5;
        match run_cluster(ClusterConfig { events: 5_000, ..config(seed, nodes, None) }) {
            Ok(report) => marks.add(&report.marks),
            Err(failure) => panic!("{failure}"),
        }
        if seed > 40 && wanted.iter().all(|mark| marks.count(*mark) > 0) {
            break;
        }
    }
    println!("{marks}");
    assert!(wanted.iter().all(|mark| marks.count(*mark) > 0));
}

/// Numbers of nodes, seeds and events that once found a fault. A change of what is drawn makes other runs of them.
const FOUND: [(usize, u64, u64); 19] = [
    // A node's first life was counted again, as one on a lost disk (a fault of the simulator).
    (1, 129, 2000),
    // Acknowledgements were lost because the primary's node was not known yet, and the primary waited for them for ever.
    (2, 126, 2000),
    (3, 5225, 2000),
    (3, 5473, 2000),
    // A primary that was deposed and did not know it refused the session that its successor had opened.
    (3, 23548, 2000),
    (3, 26993, 2000),
    (5, 22574, 2000),
    // A deposed primary made an entry where a later epoch had committed an older one (a fault of the simulator).
    (5, 2000953, 10_000),
    // A lone primary with a new learner read entries for it again and again, as long as the log had not written them.
    (2, 5, 5000),
    (3, 117, 10_000),
    // An epoch named a member whose disk was lost before it was active, and waited for it for ever. Later: a replica that was given up after
    // power cuts was chosen again, and that was refused for ever.
    (3, 111, 10_000),
    // A session whose opening was answered early, and lost, counted as lost without a reason (a fault of the simulator).
    (2, 800_010_196, 2000),
    // An older copy of a disk was believed after failed starts had counted more lives on it than on the lost one.
    (3, 5_000_002, 2000),
    (5, 5_000_538, 2000),
    (5, 5_000_945, 2000),
    // An answer to a call that a node had forwarded before it lost its disk came to a call of its next life, which had the same number.
    (3, 1_600_008_004, 2000),
    // After power cuts an epoch named a replica that had answered, and whose disk was lost since, and gave up the absent one.
    (5, 1_600_005_531, 2000),
    (5, 53_695_070_631, 2000),
    // The acknowledgement of a snapshot was lost with a connection, and the primary waited for it for ever.
    (7, 1_600_006_467, 2000),
];

#[test]
fn what_was_found_once_stays_fixed() {
    for (nodes, seed, events) in FOUND {
        if let Err(failure) = run_cluster(ClusterConfig { events, ..config(seed, nodes, None) }) {
            panic!("{failure}");
        }
    }
}

#[test]
fn a_cluster_repeats() {
    assert_eq!(run_cluster(config(3, 3, None)), run_cluster(config(3, 3, None)));
}

#[test]
fn each_planted_bug_of_a_cluster_is_caught() {
    for bug in ClusterBug::ALL {
        let found = (1..=200).find_map(|seed| {
            let failure = run_cluster(ClusterConfig { events: 2000, ..config(seed, 3, Some(bug)) }).err()?;
            bug.is_shown_by(&failure.violation).then_some(failure)
        });
        println!("{}", found.unwrap_or_else(|| panic!("{bug:?} is not caught")));
    }
}
