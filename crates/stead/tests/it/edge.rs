//! What clients may not do, and what an operator sees of processes.

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
    Node::builder(dir).service::<Wallet>(options()).service::<Shop>(options()).threads(1).open().unwrap()
}

fn key(name: &str) -> String {
    name.to_owned()
}

/// Asks until a wallet holds this much.
fn await_balance(node: &Node, wanted: i64) {
    let client = node.blocking_client();
    for _ in 0..100_000 {
        if client.query::<Wallet>(&key("w"), ()).unwrap() == wanted {
            return;
        }
        std::thread::yield_now();
    }
    panic!("the wallet never held {wanted}");
}

#[test]
fn internal_requests_are_refused_from_clients_and_taken_from_processes_and_timers() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let client = node.blocking_client();
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
