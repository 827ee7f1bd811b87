//! Three voters under cuts, crashes and restarts, while clients propose and read.

use crate::cluster::{Cluster, LONG, Net, SETTINGS};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stead_control::{Begin, ProposeError, Settings};

/// Proposals that were answered, with their place among all commands.
type Answered = Mutex<Vec<(String, u64)>>;

/// Proposes and reads at drawn nodes until the end.
fn client(name: usize, seed: u64, net: &Net, answered: &Answered, is_over: &AtomicBool) {
    let mut rng = fastrand::Rng::with_seed(seed ^ name as u64);
    let wait = Duration::from_millis(100);
    for number in 0.. {
        let command = format!("{name}.{number}");
        let mut proposal = None;
        while !is_over.load(Ordering::Relaxed) {
            let Some(plane) = net.plane(rng.u32(1..=3)) else {
                std::thread::yield_now();
                continue;
            };
            let before = answered.lock().unwrap().clone();
            if let Ok(read) = plane.read(wait) {
                for (command, place) in before {
                    let found = read.state.commands.get(usize::try_from(place).unwrap() - 1);
                    assert_eq!(found, Some(&command), "seed {seed}: a read misses what was answered before");
                }
            }
            let proposal = proposal.get_or_insert_with(|| plane.proposal(&command));
            match plane.propose(proposal, wait) {
                Ok(place) => {
                    answered.lock().unwrap().push((command.clone(), place));
                    break;
                }
                Err(ProposeError::Unknown | ProposeError::NoLeader | ProposeError::Stopped(_)) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        if is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn harm(cluster: &mut Cluster, rng: &mut fastrand::Rng) {
    let node = rng.u32(1..=3);
    match rng.u8(..6) {
        0 => cluster.net.cut(node, node % 3 + 1),
        1 => {
            cluster.net.cut(node, node % 3 + 1);
            cluster.net.cut(node, (node + 1) % 3 + 1);
        }
        2 | 3 => cluster.net.heal(),
        4 => {
            cluster.stop(node);
            cluster.start(node, Begin::Resume);
        }
        _ => {
            cluster.disks[&node].crash();
            cluster.stop(node);
            cluster.disks[&node].restart();
            cluster.start(node, Begin::Resume);
        }
    }
}

fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::new(3, Settings { snapshot_entries: 16, ..SETTINGS });
    let answered = Arc::new(Answered::default());
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|name| {
            let (net, answered, is_over) =
                (Arc::clone(&cluster.net), Arc::clone(&answered), Arc::clone(&is_over));
            std::thread::spawn(move || client(name, seed, &net, &answered, &is_over))
        })
        .collect();
    for _ in 0..10 {
        harm(&mut cluster, &mut rng);
        // Time in which the clients go on.
        let time = Duration::from_millis(rng.u64(10..150));
        let _ = cluster.any().wait_status(time, |_| false);
    }
    cluster.net.heal();
    // All go on once more after the last fault.
    let before = answered.lock().unwrap().len();
    let deadline = std::time::Instant::now() + LONG;
    while answered.lock().unwrap().len() == before {
        assert!(std::time::Instant::now() < deadline, "seed {seed}: nothing is answered after all is healed");
        std::thread::yield_now();
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let commands = cluster.converge();
    for (command, place) in &*answered.lock().unwrap() {
        assert_eq!(&commands[usize::try_from(*place).unwrap() - 1], command, "seed {seed}");
    }
    for command in &commands {
        let count = commands.iter().filter(|other| *other == command).count();
        assert_eq!(count, 1, "seed {seed}: {command} was applied {count} times");
    }
}

#[test]
fn nothing_answered_is_lost_or_applied_twice_under_faults() {
    // Threads and times are real, so a seed does not repeat a run exactly.
    let seeds = std::env::var("STEAD_CONTROL_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2);
    for seed in 0..seeds {
        run(seed);
    }
}
