//! A node on its own does not wake.

use super::IDENTITY;
use super::ledger::Ledger;
use crate::pace::{Pace, Paced};
use crate::{Answer, Begin, Change, Options, Plane, Settings, Transport};
use openraft::AsyncRuntime;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use stead_core::ids::NodeId;
use stead_store::sim_disk::SimDisk;

struct Nowhere;

impl Transport for Nowhere {
    fn request(&self, _to: NodeId, _address: &str, _request: Vec<u8>, answer: Answer) {
        drop(answer);
    }
}

#[test]
fn a_paused_tick_sleeps_until_it_is_let_go() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let pace = Pace::of_thread();
        pace.pause(true);
        let mut tick = Paced::sleep_until(tokio::time::Instant::now());
        // Longer than the tick: it would be over.
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(tick.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(tick.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending);
        pace.pause(false);
        tick.await;
    });
}

#[test]
fn the_tick_of_a_sole_voter_is_paused_until_another_node_is_placed() {
    let options = Options {
        identity: IDENTITY,
        begin: Begin::Found { address: "a".to_owned() },
        initial: Ledger::default(),
        settings: Settings::default(),
        on_change: Box::new(|| ()),
    };
    let plane = Plane::start(options, Arc::new(SimDisk::new(1)), Arc::new(Nowhere)).unwrap();
    let wait = Duration::from_secs(60);
    let paused = |paused: bool| {
        let deadline = Instant::now() + wait;
        while plane.pace().is_paused() != paused {
            assert!(Instant::now() < deadline, "the tick is paused: {}", !paused);
            std::thread::yield_now();
        }
    };
    paused(true);
    plane.change(Change::Place { node: NodeId(2), address: "b".to_owned() }, wait).unwrap();
    paused(false);
    plane.change(Change::Remove { node: NodeId(2) }, wait).unwrap();
    paused(true);
}
