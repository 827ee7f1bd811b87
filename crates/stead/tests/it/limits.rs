//! What a node keeps for its clients and operators has bounds, and no answer holds all of it.

use serde::{Deserialize, Serialize};
use stead::{
    CallError, Caller, Context, DeadLetterCursor, Limited, Never, Node, Process, QueryContext, RawError,
    Refusal, ServiceOptions,
};

#[derive(Default, Serialize, Deserialize)]
struct Hoard;

#[derive(Serialize, Deserialize)]
enum Ask {
    /// Answers so many bytes.
    Bytes(usize),
    /// Sends itself so many messages of so many bytes, which it panics over.
    Poison(usize, usize),
    Panic(Vec<u8>),
}

impl Process for Hoard {
    const SERVICE: &'static str = "hoard";
    type Key = u8;
    type Request = Ask;
    type Reply = String;
    type Error = Never;
    type Query = ();
    type Answer = ();
    fn handle(&mut self, ctx: &mut Context<'_, Self>, ask: Ask) -> Result<String, Never> {
        match ask {
            Ask::Bytes(bytes) => return Ok("x".repeat(bytes)),
            Ask::Poison(messages, bytes) => {
                for _ in 0..messages {
                    ctx.send::<Self>(&ctx.key().clone(), Ask::Panic(vec![7; bytes]));
                }
            }
            Ask::Panic(_) => assert!(matches!(ctx.caller(), Caller::Client { .. }), "as it was told"),
        }
        Ok(String::new())
    }
    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<(), Never> {
        Ok(())
    }
}

fn open(dir: &std::path::Path) -> Node {
    let options = ServiceOptions::default()
        .shards(1)
        .attempts_max(1)
        .kept_bytes_max(4 << 20)
        .dead_letter_bytes_max(1 << 20);
    Node::builder(dir).service::<Hoard>(options).threads(1).segment_bytes(16 << 20).open().unwrap()
}

#[test]
fn large_replies_to_fresh_keys_are_kept_up_to_the_bound_over_restarts_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = open(dir.path());
    let ask = |node: &Node, key: u32| {
        node.blocking_client().call_idempotent::<Hoard>(&1, &key.to_be_bytes(), Ask::Bytes(100 << 10))
    };
    let first = (0..800).find_map(|key| ask(&node, key).err().map(|error| (key, error)));
    for _ in 0..2 {
        let (_, error) = first.as_ref().unwrap();
        let CallError::Raw(RawError::Refused(refusal)) = error else { panic!("{error}") };
        assert!(
            matches!(refusal, Refusal::LimitReached { what: Limited::RepliesOfPrincipal, .. }),
            "{refusal}"
        );
        let kept = node.status().shards[0].kept_bytes;
        assert!((2 << 20..(2 << 20) + (200 << 10)).contains(&kept), "{kept}");
        assert!(ask(&node, 0).is_ok(), "what is kept is answered");
        assert!(ask(&node, 10_000).is_err());
        node.kill();
        node = open(dir.path());
    }
}

#[test]
fn dead_letters_come_in_pages_and_stop_clients_when_they_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
    client.call::<Hoard>(&1, Ask::Poison(25, 10)).unwrap();
    client.call::<Hoard>(&1, Ask::Poison(8, 300 << 10)).unwrap();
    let refused = client.call::<Hoard>(&1, Ask::Bytes(1)).unwrap_err();
    let CallError::Raw(RawError::Refused(Refusal::LimitReached { what: Limited::DeadLetters, .. })) = refused
    else {
        panic!("{refused}");
    };
    let (mut found, mut pages, mut after) = (Vec::new(), Vec::new(), None::<DeadLetterCursor>);
    loop {
        let page = node.dead_letters("hoard", after, 10).unwrap();
        pages.push(page.dead_letters.len());
        found.extend(page.dead_letters.into_iter().map(|letter| letter.index));
        let Some(next) = page.next else { break };
        after = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(pages, [10, 10, 9, 4], "a page ends at ten, or after 1 MiB");
    assert!(found.is_sorted() && found.len() == 33);
    assert_eq!(node.status().shards[0].dead_letters, 33);
    assert!(node.status().shards[0].dead_letters_bytes > 8 * (300 << 10));
    for index in found {
        client.drop_dead_letter(0, index).unwrap();
    }
    assert_eq!(node.status().shards[0].dead_letters_bytes, 0);
    client.call::<Hoard>(&1, Ask::Bytes(1)).unwrap();
}
