//! Requests that clients must not send, and an operator's view of processes.

use crate::patience::await_until;
use crate::services::Way;
use serde::{Deserialize, Serialize};
use stead::{
    CallError, Context, Misuse, Never, Node, Process, QueryContext, RawError, Refusal, ServiceOptions,
};

/// A wallet: payments come back as refunds, which no client may send.
#[derive(Default, Serialize, Deserialize)]
struct Wallet {
    balance: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Request {
    Load(i64),
    /// Pays a shop, which has nothing to sell.
    Pay {
        shop: String,
        amount: i64,
    },
    Refund(i64),
    /// Becomes a refund a moment later.
    Later(i64),
}

impl Process for Wallet {
    const SERVICE: &'static str = "wallet";
    type Key = String;
    type Request = Request;
    type Reply = i64;
    type Error = Never;
    type Query = ();
    type Answer = i64;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<i64, Never> {
        match request {
            Request::Load(amount) | Request::Refund(amount) => self.balance += amount,
            Request::Pay { shop, amount } => {
                self.balance -= amount;
                ctx.send::<Shop>(&shop, Order { from: ctx.key().clone(), amount });
            }
            Request::Later(amount) => {
                ctx.set_timer(std::time::Duration::ZERO, Request::Refund(amount));
            }
        }
        Ok(self.balance)
    }

    fn internal(request: &Request) -> bool {
        matches!(request, Request::Refund(_))
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<i64, Never> {
        Ok(self.balance)
    }
}

/// A service for other processes alone.
#[derive(Default, Serialize, Deserialize)]
struct Shop {
    orders: u32,
}

#[derive(Serialize, Deserialize)]
struct Order {
    from: String,
    amount: i64,
}

impl Process for Shop {
    const SERVICE: &'static str = "shop";
    type Key = String;
    type Request = Order;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = u32;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, order: Order) -> Result<(), Never> {
        self.orders += 1;
        ctx.send::<Wallet>(&order.from, Request::Refund(order.amount));
        Ok(())
    }

    fn internal(_: &Order) -> bool {
        true
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<u32, Never> {
        Ok(self.orders)
    }
}

fn open(dir: &std::path::Path) -> Node {
    let options = || ServiceOptions::default().shards(2);
    let node = Node::builder(dir).service::<Wallet>(options()).service::<Shop>(options()).threads(1);
    node.listen_native(([127, 0, 0, 1], 0).into()).open().unwrap()
}

fn key(name: &str) -> String {
    name.to_owned()
}

/// Queries a wallet until it has this balance.
fn await_balance(node: &Node, wanted: i64) {
    let client = node.blocking_client();
    await_until(&format!("a wallet with {wanted}"), || {
        client.query::<Wallet>(&key("w"), ()).unwrap() == wanted
    });
}

#[test]
fn internal_requests_are_refused_from_clients_and_taken_from_processes_and_timers() {
    for way in Way::ALL {
        let dir = tempfile::tempdir().unwrap();
        let node = open(dir.path());
        let client = way.client(&node);
        assert_eq!(client.call::<Wallet>(&key("w"), Request::Load(10)).unwrap(), 10);
        let refusals = [
            client.call::<Wallet>(&key("w"), Request::Refund(5)).unwrap_err(),
            client.call_idempotent::<Wallet>(&key("w"), b"k", Request::Refund(5)).unwrap_err(),
            client.with_principal("other").call::<Wallet>(&key("w"), Request::Refund(5)).unwrap_err(),
        ];
        for refused in refusals {
            let internal = RawError::Refused(Refusal::Misuse(Misuse::Internal("wallet/w".to_owned())));
            assert_eq!(refused, CallError::Raw(internal));
            assert!(
                refused.to_string().contains("wallet/w") && refused.to_string().contains("clients"),
                "{refused}"
            );
        }
        let order = Order { from: key("w"), amount: 5 };
        assert!(client.call::<Shop>(&key("s"), order).is_err());
        assert_eq!(client.query::<Wallet>(&key("w"), ()).unwrap(), 10, "nothing was changed");
        client.call::<Wallet>(&key("w"), Request::Pay { shop: key("s"), amount: 4 }).unwrap();
        await_balance(&node, 10);
        client.call::<Wallet>(&key("w"), Request::Later(7)).unwrap();
        await_balance(&node, 17);
        assert_eq!(client.query::<Shop>(&key("s"), ()).unwrap(), 1);
    }
}

/// Creates as many cells and timers as a request says.
#[derive(Default, Serialize, Deserialize)]
struct Hoard {
    kept: u32,
}

#[derive(Serialize, Deserialize)]
struct Keep {
    cells: u32,
    timers: u32,
}

impl Process for Hoard {
    const SERVICE: &'static str = "hoard";
    type Key = u32;
    type Request = Keep;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = u32;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, keep: Keep) -> Result<(), Never> {
        for cell in 0..keep.cells {
            ctx.put_cell(&(self.kept + cell).to_be_bytes(), &[1u8; 7].as_slice());
        }
        for _ in 0..keep.timers {
            ctx.set_timer(std::time::Duration::from_secs(3600), Keep { cells: 0, timers: 0 });
        }
        self.kept += keep.cells;
        Ok(())
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, (): ()) -> Result<u32, Never> {
        Ok(ctx.scan_cells::<Vec<u8>>(&[], &[], usize::MAX).len() as u32)
    }
}

#[test]
fn processes_are_paged_counted_and_deleted_however_much_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let options = ServiceOptions::default().shards(3);
    let node = Node::builder(dir.path()).service::<Hoard>(options).threads(2).open().unwrap();
    let client = node.blocking_client();
    for key in 0..150 {
        client.call::<Hoard>(&key, Keep { cells: key % 3, timers: 0 }).unwrap();
    }
    // More than one look goes through, and more than one entry deletes.
    for _ in 0..3 {
        client.call::<Hoard>(&7, Keep { cells: 900, timers: 450 }).unwrap();
    }
    let all = |prefix: &str, limit: usize| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = node.processes("hoard", prefix, after, limit).unwrap();
            assert!(page.processes.len() <= limit);
            found.extend(page.processes);
            match page.next {
                Some(next) => after = Some(next.to_string().parse().unwrap()),
                None => break,
            }
        }
        found.sort_by_key(|process| process.key.parse::<u32>().unwrap());
        found
    };
    for limit in [1, 7, 1000] {
        let found = all("", limit);
        assert_eq!(found.len(), 150, "{limit} a page");
        for (key, process) in found.iter().enumerate() {
            let more = if key == 7 { 2700 } else { 0 };
            assert_eq!((process.key.as_str(), process.cells), (&*key.to_string(), key as u64 % 3 + more));
            assert_eq!(process.timers, more / 2);
            assert!(process.bytes > 0 && (process.cells == 0) == (process.cells_bytes == 0));
        }
    }
    assert_eq!(all("14", 3).len(), 11, "14 and 140 to 149");
    let shown = node.process("hoard", "7").unwrap();
    assert!(shown.exists && shown.info == all("7", 100)[0] && shown.timer_list.len() == 100, "{shown:?}");
    assert!(!node.process("hoard", "no such").unwrap().exists);

    let entries = node.metrics().entries;
    assert_eq!(node.delete_process("hoard", "7").unwrap(), 1 + 2701 + 1350);
    assert!(node.metrics().entries - entries <= 6, "it goes in batches");
    assert!(!node.process("hoard", "7").unwrap().exists);
    assert_eq!(client.query::<Hoard>(&7, ()).unwrap(), 0);
    assert_eq!(node.delete_process("hoard", "7").unwrap(), 0);
    assert_eq!(all("", 1000).len(), 149);
    assert!(matches!(node.processes("nothing", "", None, 1), Err(RawError::UnknownService { .. })));
    assert!(matches!(node.process("hoard", ""), Err(RawError::Codec(_))));

    let log = node.process_log("hoard", "7", 0, 1000).unwrap();
    let causes: Vec<_> = log.entries.iter().map(|entry| entry.cause.as_str()).collect();
    assert_eq!(causes.iter().filter(|cause| **cause == "deleted by an operator").count(), 5, "{causes:?}");
    let (mut paged, mut from) = (Vec::new(), 0);
    loop {
        let page = node.process_log("hoard", "7", from, 2).unwrap();
        if page.entries.is_empty() {
            break;
        }
        (paged, from) = ([paged, page.entries].concat(), page.next);
    }
    assert_eq!(paged, log.entries);
}
