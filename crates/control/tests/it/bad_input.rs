//! Requests that no plane sends.

use crate::cluster::{Cluster, LONG, SETTINGS, alone, found, nowhere, options, propose};
use crate::ledger::Ledger;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use stead_control::{COMMAND_BYTES_MAX, Plane, ProposeError, Settings, StartError};
use stead_core::ids::NodeId;
use stead_store::sim_disk::SimDisk;

fn ask(plane: &Plane<Ledger>, request: Vec<u8>) -> Vec<u8> {
    let (sender, receiver) = mpsc::channel();
    plane.receive(NodeId(2), request, move |answer| sender.send(answer).unwrap());
    receiver.recv_timeout(LONG).unwrap()
}

#[test]
fn hostile_requests_get_answers_and_change_nothing() {
    let plane = alone(&SimDisk::new(1), found()).unwrap();
    propose(&plane, "one");
    let mut rng = fastrand::Rng::with_seed(5);
    // Whole requests with numbers that are too great, a vote of another node, and an entry that does not follow.
    let mut hostile = vec![
        b"".to_vec(),
        b"\x02".to_vec(),
        b"\x01\x82\x01\x82\x83\x1b\xff\xff\xff\xff\xff\xff\xff\xff\x02\xf5\xf6".to_vec(),
        b"\x01\x82\x01\x82\x83\x05\x03\xf4\xf6".to_vec(),
        b"\x01\x82\x00\x84\x83\x01\x02\xf5\xf6\x9b\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
    ];
    for _ in 0..2000 {
        let mut request: Vec<u8> = (0..rng.usize(..60)).map(|_| rng.u8(..)).collect();
        if let Some(first) = request.first_mut() {
            *first = 1;
        }
        hostile.push(request);
    }
    for request in hostile {
        let text = format!("{request:02x?}");
        let answer = ask(&plane, request);
        // A refusal: version 1, a pair, kind 11.
        assert_eq!(answer[..3], [1, 0x82, 11], "{text}: {answer:02x?}");
    }
    propose(&plane, "two");
    assert_eq!(plane.newest().state.commands, ["one", "two"]);
}

#[test]
fn commands_over_the_limit_and_from_another_version_are_refused() {
    let plane = alone(&SimDisk::new(1), found()).unwrap();
    let large = plane.proposal(&"x".repeat(COMMAND_BYTES_MAX));
    assert!(matches!(plane.propose(&large, LONG), Err(ProposeError::TooLarge { .. })));
    let cluster = Cluster::new(1, Settings { log_bytes_max: 0, ..SETTINGS });
    let proposal = cluster.any().proposal(&"full".to_owned());
    assert_eq!(cluster.any().propose(&proposal, LONG), Err(ProposeError::Full));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let wrong = [
        Settings { heartbeat: Duration::from_millis(200), ..SETTINGS },
        Settings { heartbeat: Duration::from_millis(1), ..SETTINGS },
        Settings { snapshot_entries: 1, ..SETTINGS },
    ];
    for settings in wrong {
        let disk = Arc::new(SimDisk::new(1));
        let started = Plane::start(options(1, found(), settings), disk, nowhere());
        assert!(matches!(started.map(drop), Err(StartError::Settings(_))), "{settings:?}");
    }
}
