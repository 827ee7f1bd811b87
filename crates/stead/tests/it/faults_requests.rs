//! Invalid requests through the library: each is refused with its reason, and has no other effect.

use crate::services::{Account, Ask, Look, Way, builder, key};
use std::time::Duration;
use stead::codec::CodecError;
use stead::{BlockingClient, CallError, Node, RawCall, RawError};

fn call<'a>(service: &'a str, key: &'a str, payload: &[u8]) -> RawCall<'a> {
    let timeout = Duration::from_secs(5);
    RawCall {
        service,
        key,
        payload: payload.to_vec(),
        principal: "test",
        idempotency_key: None,
        seen: None,
        timeout,
    }
}

fn refused(client: &BlockingClient, call: RawCall<'_>) -> RawError {
    client.call_raw(call).unwrap_err()
}

#[test]
fn unknown_services_keys_and_requests_are_refused_with_the_reason() {
    for way in Way::ALL {
        let dir = tempfile::tempdir().unwrap();
        let node = builder(dir.path()).open().unwrap();
        let client = way.client(&node);
        client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap();
        let entries = node.metrics().entries;
        let deposit = stead::codec::json_to_payload(&serde_json::json!({"Deposit": 1})).unwrap();

        let error = refused(&client, call("acount", "a", &deposit));
        assert_eq!(error, RawError::UnknownService { service: "acount".to_owned() });
        for bad in [String::new(), "k".repeat(513)] {
            let error = refused(&client, call("account", &bad, &deposit));
            assert!(matches!(&error, RawError::Codec(CodecError::Key { .. })), "{error}");
        }
        for bad in
            [&[][..], &[0xc1], &deposit[..deposit.len() - 1], &[&deposit[..], &[0]].concat(), &[0x91; 4000]]
        {
            let error = refused(&client, call("account", "a", bad));
            let text = error.to_string();
            assert!(
                matches!(error, RawError::Refused(_)) && text.contains("cannot read a request of account"),
                "{text}"
            );
        }
        let long = "p".repeat(257);
        let error = refused(&client, RawCall { principal: &long, ..call("account", "a", &deposit) });
        assert!(error.to_string().contains("a principal of 257 bytes"), "{error}");
        let error = refused(
            &client,
            RawCall { idempotency_key: Some(long.as_bytes()), ..call("account", "a", &deposit) },
        );
        assert!(error.to_string().contains("an idempotency key of 257 bytes"), "{error}");

        let error = client.with_principal(&long).call::<Account>(&key("a"), Ask::Deposit(1)).unwrap_err();
        assert!(error.to_string().contains("a principal of 257 bytes"), "{error}");

        assert_eq!(node.metrics().entries, entries, "what is refused leaves no entry");
        assert_eq!(client.query::<Account>(&key("a"), Look::Balance).unwrap(), 1);
        assert_eq!(client.call::<Account>(&key("a"), Ask::Deposit(1)).unwrap(), 2);
    }
}

#[test]
fn what_does_not_fit_into_the_log_is_refused_and_the_node_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::builder(dir.path())
        .service::<stead::kv::Kv>(stead::ServiceOptions::default().shards(2))
        .segment_bytes(256 << 10)
        .threads(1)
        .checkpoints(stead::CheckpointOptions { interval: None, ..Default::default() })
        .open()
        .unwrap();
    let client = node.blocking_client();
    let put = |key: &str, bytes: usize| {
        let value = serde_json::Value::String("x".repeat(bytes));
        client.call::<stead::kv::Kv>(&key.to_owned(), stead::kv::Request::Put { value })
    };
    put("a", 1000).unwrap();
    for bytes in [256 << 10, 1 << 20, 5 << 20] {
        let error = put("a", bytes).unwrap_err();
        let CallError::Raw(RawError::Refused(refusal)) = &error else { panic!("{error}") };
        assert!(refusal.to_string().contains("over the limit of"), "{refusal}");
    }
    assert!(node.is_ready());
    assert!(put("a", 1000).unwrap().previous.is_some());

    // Many at once: together more than a segment holds, each of them small enough.
    let callers: Vec<_> = (0..64)
        .map(|at| {
            let client = node.blocking_client();
            std::thread::spawn(move || {
                let value = serde_json::Value::String("y".repeat(60_000));
                client
                    .call::<stead::kv::Kv>(&format!("key-{at}"), stead::kv::Request::Put { value })
                    .unwrap();
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    assert!(node.is_ready());
}
