//! A shop: orders that wait for their payment, expire, are cancelled, and go to a warehouse.
//!
//!     cargo run -p stead --example shop [DATA_DIRECTORY]
//!
//! Its handlers use every feature of a handler beside its own state: cells, messages, timers, tasks. Kill it at any
//! moment and run it again: no order is charged twice, none is forgotten.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;
use stead::{
    Caller, Context, Never, NoQuery, Node, Process, Progress, QueryContext, RetryPolicy, ServiceOptions,
    StepContext, Task, TaskId, Time, TimerId,
};

const PAYMENT_TIME: Duration = Duration::from_secs(30 * 60);
const REMINDER_AFTER: Duration = Duration::from_secs(10 * 60);
/// Maximum number of lines of an order.
const LINES_MAX: usize = 100;

/// An order. Its lines are cells, one for each article, so that a change of one line logs that line alone.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Order {
    stage: Stage,
    discount_percent: u8,
    timeout: Option<TimerId>,
    reminder: Option<TimerId>,
    charge: Option<TaskId>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Stage {
    #[default]
    Open,
    Unpaid {
        since: Time,
    },
    Paid,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Changes a line; 0 removes it.
    Put {
        article: String,
        count: u32,
    },
    /// Begins the payment; the customer is reminded, and has half an hour.
    Place,
    Cancel,
    /// Sends a note to the customer; a note that is too long is refused.
    Note(String),
    /// Delivers a paid order at a time of the clock instead of at once.
    DeliverAt(Time),
    /// A timer: the time for the payment is over.
    Expire,
    /// A timer: the time of delivery has come.
    Deliver,
    /// A task: the customer was charged.
    Charged,
}

#[derive(Debug, Serialize, Deserialize)]
enum Refused {
    NotNow(String),
    Empty,
    TooLong(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNow(why) => write!(f, "not now: {why}"),
            Self::Empty => write!(f, "the order has no lines"),
            Self::TooLong(why) => write!(f, "the note cannot be sent: {why}"),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Look {
    Count { article: String },
    Summary,
}

impl Process for Order {
    const SERVICE: &'static str = "order";
    type Key = u64;
    type Request = Request;
    type Reply = String;
    type Error = Refused;
    type Query = Look;
    type Answer = String;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, request: Request) -> Result<String, Refused> {
        match request {
            Request::Put { article, count } => {
                if self.stage != Stage::Open {
                    return Err(Refused::NotNow("the order is placed".to_owned()));
                }
                let before = ctx.cell::<u32>(article.as_bytes()).unwrap_or(0);
                match count {
                    0 => ctx.delete_cell(article.as_bytes()),
                    _ => ctx.put_cell(article.as_bytes(), &count),
                }
                Ok(format!("{count} {article}, {before} before"))
            }
            Request::Place => self.place(ctx),
            Request::Cancel => {
                if self.stage == Stage::Paid {
                    return Err(Refused::NotNow("the order is paid".to_owned()));
                }
                self.end(ctx);
                Ok("cancelled".to_owned())
            }
            Request::Note(text) => {
                let customer = customer_of(ctx.key());
                // A process that sends text of its callers must refuse text that is too long, at which `send` would
                // panic.
                let sent = ctx.try_send::<Customer>(&customer, Mail(text));
                sent.map_err(|error| Refused::TooLong(error.to_string()))?;
                Ok("sent".to_owned())
            }
            Request::DeliverAt(time) => {
                if self.stage != Stage::Paid {
                    return Err(Refused::NotNow("the order is not paid".to_owned()));
                }
                ctx.set_timer_at(time, Request::Deliver);
                Ok(format!("at {}", time.0))
            }
            Request::Expire => {
                self.end(ctx);
                Ok("expired".to_owned())
            }
            Request::Charged => {
                self.stage = Stage::Paid;
                self.charge = None;
                self.stop_waiting(ctx);
                ctx.send::<Customer>(&customer_of(ctx.key()), Mail("thank you".to_owned()));
                Ok("paid".to_owned())
            }
            Request::Deliver => {
                for (article, count) in ctx.scan_cells::<u32>(b"", b"", LINES_MAX) {
                    let article = String::from_utf8_lossy(&article).into_owned();
                    ctx.send::<Warehouse>(&"main".to_owned(), Pick { article, count });
                }
                Ok("on its way".to_owned())
            }
        }
    }

    fn internal(request: &Request) -> bool {
        matches!(request, Request::Expire | Request::Deliver | Request::Charged)
    }

    fn query(&self, ctx: &QueryContext<'_, Self>, query: Look) -> Result<String, Refused> {
        if !ctx.exists() {
            return Ok(format!("there is no order {}", ctx.key()));
        }
        match query {
            Look::Count { article } => {
                let count = ctx.cell::<u32>(article.as_bytes());
                Ok(count.map_or_else(|| "none".to_owned(), |count| count.to_string()))
            }
            Look::Summary => {
                let lines = ctx.scan_cells::<u32>(b"", b"", LINES_MAX).len();
                let waits = match self.stage {
                    Stage::Unpaid { since } => {
                        format!(", unpaid for {} s", (ctx.time().0 - since.0) / 1_000_000)
                    }
                    _ => String::new(),
                };
                let charging = ctx
                    .tasks()
                    .iter()
                    .map(|task| format!(", {} since step {}", task.name, task.step))
                    .collect::<String>();
                let asked = match ctx.caller() {
                    Caller::Client { principal } if !principal.is_empty() => {
                        format!(" (asked by {principal})")
                    }
                    _ => String::new(),
                };
                Ok(format!("{:?}, {lines} lines{waits}{charging}{asked}", self.stage))
            }
        }
    }
}

impl Order {
    fn place(&mut self, ctx: &mut Context<'_, Self>) -> Result<String, Refused> {
        if let Some(charge) = self.charge.and_then(|id| ctx.task(id)) {
            let failures = charge.retries;
            return Err(Refused::NotNow(format!("it is being charged, after {failures} failures")));
        }
        if self.stage != Stage::Open {
            return Err(Refused::NotNow("the order is placed".to_owned()));
        }
        let lines = ctx.scan_cells::<u32>(b"", b"", LINES_MAX);
        if lines.is_empty() {
            return Err(Refused::Empty);
        }
        // A handler runs once: its random choice is logged, and stays the same after a kill.
        self.discount_percent = if ctx.random().u8(..10) == 0 { 50 } else { 0 };
        self.stage = Stage::Unpaid { since: ctx.time() };
        let customer = customer_of(ctx.key());
        self.timeout = Some(ctx.set_timer(PAYMENT_TIME, Request::Expire));
        let mail = Mail("your order waits for its payment".to_owned());
        self.reminder = Some(ctx.send_after::<Customer>(REMINDER_AFTER, &customer, mail));
        // No other call of this order ever has the same place: the provider recognises a repeated charge by it.
        let (epoch, index) = ctx.place();
        let reference = format!("order-{}-{}-{}", ctx.key(), epoch.0, index.0);
        let count: u32 = lines.iter().map(|(_, count)| count).sum();
        let cents = u64::from(count) * 100 * u64::from(100 - self.discount_percent) / 100;
        self.charge = Some(ctx.start_task(Charge { reference, cents }));
        Ok(format!("{cents} cents"))
    }

    fn stop_waiting(&mut self, ctx: &mut Context<'_, Self>) {
        for timer in [self.timeout.take(), self.reminder.take()].into_iter().flatten() {
            // It may have fired already.
            ctx.cancel_timer(timer);
        }
    }

    /// Deletes all state of the order.
    fn end(&mut self, ctx: &mut Context<'_, Self>) {
        self.stop_waiting(ctx);
        for task in ctx.tasks() {
            ctx.cancel_task(task.id);
        }
        for (article, _) in ctx.scan_cells::<u32>(b"", b"", LINES_MAX) {
            ctx.delete_cell(&article);
        }
        ctx.forget();
    }
}

/// Charges a customer, in two steps: the provider reserves the money, then takes it.
#[derive(Debug, Serialize, Deserialize)]
struct Charge {
    reference: String,
    cents: u64,
}

impl Task for Charge {
    const NAME: &'static str = "charge";
    type Owner = Order;

    fn step(&mut self, ctx: &StepContext<'_>) -> Progress {
        if ctx.is_stopping() {
            // The provider takes long: the next life calls it.
            return Progress::Retry("the node stops".to_owned());
        }
        // A step may run again after a kill: the provider must recognise the same call by this name.
        let name = format!("{}-{}-{}", self.reference, ctx.id().0, ctx.step());
        match provider(ctx.owner(), &name, self.cents, ctx.retries()) {
            Err(reason) => Progress::Retry(reason),
            Ok(()) if ctx.step() == 0 => Progress::Continue(0.5),
            Ok(()) => Progress::Done,
        }
    }

    fn retry() -> RetryPolicy {
        RetryPolicy { delay_min: Duration::from_millis(10), ..RetryPolicy::default() }
    }

    fn finish(self) -> Request {
        Request::Charged
    }
}

/// A payment provider in another system, which is busy at the first attempt.
fn provider(order: &str, name: &str, cents: u64, failures: u32) -> Result<(), String> {
    if failures == 0 {
        return Err("the provider is busy".to_owned());
    }
    println!("provider: {cents} cents of order {order}, as {name}");
    Ok(())
}

fn customer_of(order: &u64) -> u64 {
    order % 100
}

/// A customer, who receives mail.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Customer {
    mails: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Mail(String);

impl Process for Customer {
    const SERVICE: &'static str = "customer";
    type Key = u64;
    type Request = Mail;
    type Reply = ();
    type Error = Never;
    type Query = ();
    type Answer = u64;

    fn handle(&mut self, ctx: &mut Context<'_, Self>, Mail(text): Mail) -> Result<(), Never> {
        self.mails += 1;
        println!("customer {}: {text}", ctx.key());
        Ok(())
    }

    fn internal(_: &Mail) -> bool {
        true
    }

    fn query(&self, _: &QueryContext<'_, Self>, (): ()) -> Result<u64, Never> {
        Ok(self.mails)
    }
}

/// A warehouse, which picks the articles of orders.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Warehouse {
    picked: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Pick {
    article: String,
    count: u32,
}

impl Process for Warehouse {
    const SERVICE: &'static str = "warehouse";
    type Key = String;
    type Request = Pick;
    type Reply = ();
    type Error = Never;
    type Query = NoQuery;
    type Answer = ();

    fn handle(&mut self, ctx: &mut Context<'_, Self>, Pick { article, count }: Pick) -> Result<(), Never> {
        self.picked += u64::from(count);
        let all = ctx.cell::<u64>(article.as_bytes()).unwrap_or(0) + u64::from(count);
        ctx.put_cell(article.as_bytes(), &all);
        if let Caller::Process { service, key } = ctx.caller() {
            println!("warehouse: {count} {article} for {service} {key}");
        }
        Ok(())
    }

    fn internal(_: &Pick) -> bool {
        true
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("stead-shop"), Into::into);
    let node = Node::builder(dir)
        .service::<Order>(ServiceOptions::default().shards(4))
        .service::<Customer>(ServiceOptions::default().shards(4))
        .service::<Warehouse>(ServiceOptions::default().shards(1))
        .task::<Charge>()
        .task_threads(4)
        .open()?;
    let shop = node.blocking_client();
    let order = fastrand::u64(..1_000_000);
    for (article, count) in [("apples", 3), ("pears", 2), ("plums", 1), ("plums", 0)] {
        println!("{}", shop.call::<Order>(&order, Request::Put { article: article.to_owned(), count })?);
    }
    println!("apples: {}", shop.query::<Order>(&order, Look::Count { article: "apples".to_owned() })?);
    println!("placed: {}", shop.call::<Order>(&order, Request::Place)?);
    let summary = || shop.query::<Order>(&order, Look::Summary);
    while !summary()?.starts_with("Paid") {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("{}", summary()?);
    println!("{}", shop.call::<Order>(&order, Request::Note("it is packed".to_owned()))?);
    println!("delivered {}", shop.call::<Order>(&order, Request::DeliverAt(Time(0)))?);

    // Another order is cancelled while it is charged, and all its state is deleted.
    let other = order + 1;
    shop.call::<Order>(&other, Request::Put { article: "cherries".to_owned(), count: 1 })?;
    shop.call::<Order>(&other, Request::Place)?;
    match shop.call::<Order>(&other, Request::Cancel) {
        Ok(cancelled) => println!("{cancelled}: {}", shop.query::<Order>(&other, Look::Summary)?),
        Err(paid) => println!("{paid}"),
    }
    // Thanks, and the note; the reminder was cancelled.
    while shop.query::<Customer>(&customer_of(&order), ())? < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    node.shutdown();
    Ok(())
}
