//! The state that a shard keeps besides its processes is bounded, in bytes, as a whole and for each principal.

use crate::numbered;
use crate::world::{World, ok};
use stead_core::blob::Blob;
use stead_core::calls::{Identity, Limited, Refusal};
use stead_core::ids::{BodyHash, CallToken, Index, Micros, SessionId};
use stead_core::records::Records;
use stead_core::reply::Reply;
use stead_core::shard::{DeadLetterAction, Input, Settings};
use stead_core::state::State;

const BIG: usize = 10_000;

fn world(settings: Settings) -> World {
    let mut world = World::with(settings);
    // Nothing is suspected, so no request has to wait.
    world.is_clean = true;
    world.restart();
    world.settle();
    world
}

/// Sends a request with a fresh key, whose reply is the state of its process.
fn keyed(world: &mut World, number: u32) -> Result<Reply, Refusal> {
    let key = Blob::from(number.to_string().as_bytes());
    let token = world.request("a", "caller", Identity::Idempotency { key, body_hash: BodyHash([1; 16]) });
    world.settle();
    world.answer(token).unwrap().result.clone()
}

fn limited(result: &Result<Reply, Refusal>) -> Option<Limited> {
    match result {
        Err(Refusal::LimitReached { what, .. }) => Some(*what),
        _ => None,
    }
}

/// Returns the state as a start would load it.
fn loaded(state: &State) -> State {
    let mut records = Records::new();
    state.records().iter().for_each(|(key, value)| records.load(key, Some(value.clone())));
    records.loaded();
    State::load(state.header(), records).unwrap()
}

#[test]
fn overwrites_of_a_large_value_with_fresh_keys_stay_within_the_bound() {
    let max = 40 * BIG;
    let mut world = world(Settings { kept_bytes_max: max, ..Settings::default() });
    world.call("a", &format!("add {}", "x".repeat(BIG))).unwrap();
    let mut refused = None;
    for number in 0..800 {
        if let Some(what) = limited(&keyed(&mut world, number)) {
            refused.get_or_insert((number, what));
        }
    }
    assert_eq!(refused, Some((20, Limited::RepliesOfPrincipal)), "half of it for one principal");
    let kept = |world: &World| world.shard("a").state().kept().replies;
    assert!(kept(&world) < max / 2 + 2 * BIG, "{}", kept(&world));
    world.principal = "bob".into();
    let others = (0..800).map(|number| limited(&keyed(&mut world, number))).find_map(|what| what);
    assert_eq!(others, Some(Limited::Replies));
    assert!(kept(&world) < max + 2 * BIG, "{}", kept(&world));
    assert!(world.shard("a").state().index_difference(&loaded(world.shard("a").state())).is_none());
    // Requests that keep nothing are served, a retry is answered, and so are requests of the next day.
    world.call("a", "caller").unwrap();
    assert!(keyed(&mut world, 1).is_ok());
    world.pass_span(world.settings.idempotency_ttl.plus(Micros::from_millis(1)));
    assert_eq!(kept(&world), 0);
    assert!(keyed(&mut world, 1_000).is_ok());
}

#[test]
fn a_session_that_confirms_goes_on_whatever_others_keep() {
    let mut world = world(Settings { kept_bytes_max: 10 * BIG, ..Settings::default() });
    world.call("a", &format!("add {}", "x".repeat(BIG))).unwrap();
    let (polite, hoarder) = (world.open("a", 1), world.open("a", 2));
    let mut ask = |session, number, confirmed| {
        let token = world.request("a", "caller", numbered(session, number, confirmed));
        world.settle();
        let kept = world.shard("a").state().kept().replies;
        (limited(&world.answer(token).unwrap().result), kept)
    };
    let refused = (1..).find(|&number| ask(hoarder, number, 0).0.is_some()).unwrap();
    assert_eq!(ask(hoarder, refused, 0).0, Some(Limited::RepliesOfPrincipal));
    for number in 1..100 {
        let (refusal, kept) = ask(polite, number, number - 1);
        assert_eq!(refusal, None);
        assert!(kept < 10 * BIG + State::SESSION_KEPT + 2 * BIG, "{kept}");
    }
    assert_eq!(ask(hoarder, refused, 0).0, Some(Limited::Replies));
    let (refusal, _) = ask(hoarder, refused, refused - 1);
    assert_eq!(refusal, None, "it confirms");
    assert!(world.shard("a").state().session(hoarder).unwrap().kept < 2 * BIG);
}

#[test]
fn sessions_are_counted_as_a_whole_and_for_each_principal() {
    let mut world = world(Settings { sessions_max: 6, ..Settings::default() });
    let shard = world.shard_of("a");
    let open = |world: &mut World, session: u128, principal: &str| {
        let token = CallToken(1_000 + session as u64);
        let session = SessionId(session);
        world.give(shard, Input::OpenSession { token, session, principal: principal.into() });
        world.settle();
        limited(&world.answer(token).unwrap().result)
    };
    let alice: Vec<_> = (0..4).map(|session| open(&mut world, session, "alice")).collect();
    assert_eq!(alice, [None, None, None, Some(Limited::SessionsOfPrincipal)]);
    for session in 10..13 {
        assert_eq!(open(&mut world, session, "bob"), None);
    }
    assert_eq!(open(&mut world, 20, "carol"), Some(Limited::Sessions));
    assert_eq!(open(&mut world, 1, "alice"), None, "an open session is not opened again");
    assert_eq!(world.shard("a").state().kept_for("alice").sessions, 3);
    world.pass_span(world.settings.session_ttl.plus(Micros::from_millis(1)));
    assert_eq!((open(&mut world, 20, "carol"), world.shard("a").state().sessions()), (None, 1));
}

#[test]
fn dead_letters_that_are_too_many_stop_clients_until_some_are_dealt_with() {
    let mut world =
        world(Settings { dead_letter_bytes_max: 3 * BIG, attempts_max: 1, ..Settings::default() });
    let poison = format!("send a panic {}", "x".repeat(BIG));
    let ended = (0..10).map(|_| world.call("a", &poison)).find(Result::is_err).unwrap();
    assert_eq!(limited(&ended), Some(Limited::DeadLetters));
    let letters: Vec<Index> = world.shard("a").state().dead_letters_from(Index(0)).collect();
    assert_eq!((letters.len(), world.shard("a").state().dead_letters()), (3, 3));
    let last = world.shard("a").state().dead_letters_from(letters[1].next()).collect::<Vec<_>>();
    assert_eq!(last, letters[2..]);
    assert!(world.shard("a").state().index_difference(&loaded(world.shard("a").state())).is_none());
    // A retry that fails again stays a dead letter; an operator is not refused.
    assert!(matches!(
        world.decided("a", letters[0], DeadLetterAction::Retry),
        Err(Refusal::FailedAgain { .. })
    ));
    assert_eq!(world.shard("a").state().dead_letters(), 3);
    assert!(world.decided("a", letters[0], DeadLetterAction::Drop).is_ok());
    assert_eq!(world.call("b", "add x"), Ok(ok("x")));
    assert!(world.call("a", "add x").is_ok());
}

#[test]
fn timers_and_tasks_that_are_too_many_stop_clients_until_they_are_over() {
    let mut world = world(Settings { waiting_bytes_max: 3 * BIG, ..Settings::default() });
    let big = "x".repeat(BIG);
    world.call("a", &format!("timer 1000 add {big}\ntimer 1000 add {big}\ntask 1")).unwrap();
    assert!(world.call("a", &format!("timer 1000 add {big}")).is_ok());
    assert_eq!(limited(&world.call("a", "add x")), Some(Limited::Waiting));
    assert!(world.shard("a").state().index_difference(&loaded(world.shard("a").state())).is_none());
    world.pass(1_001);
    assert!(world.call("a", "add x").is_ok());
}
