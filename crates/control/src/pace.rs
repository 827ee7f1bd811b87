//! openraft's runtime: tokio, with a clock tick that stops while there is nothing to time.
//!
//! openraft wakes at a fixed interval for heartbeats and elections. A sole voter without learners needs neither, so a node
//! on its own would wake for nothing, for ever. The tick is the only caller of `sleep_until`; here it sleeps until the
//! plane of its thread is not [`Pace::pause`]d. Each plane has a thread of its own.

use openraft::{AsyncRuntime, OptionalSend, TokioInstant, TokioRuntime};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Whether the tick of a plane is paused.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    paused: Arc<watch::Sender<bool>>,
}

thread_local! {
    static PACE: RefCell<Option<Pace>> = const { RefCell::new(None) };
}

impl Pace {
    /// Returns the pace of all planes that this thread begins from now on.
    pub(crate) fn of_thread() -> Self {
        let pace = Self { paused: Arc::new(watch::Sender::new(false)) };
        PACE.with(|of_thread| *of_thread.borrow_mut() = Some(pace.clone()));
        pace
    }

    /// Pauses the tick, or lets it go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.send_if_modified(|is_paused| std::mem::replace(is_paused, paused) != paused);
    }

    /// Whether the tick is paused.
    #[cfg(test)]
    pub(crate) fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    async fn go(&self) {
        // An error would mean that the sender is gone, which this has.
        let _ = self.paused.subscribe().wait_for(|paused| !paused).await;
    }
}

/// tokio, with the pace of the thread.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Paced;

impl AsyncRuntime for Paced {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Box::pin(TokioRuntime::sleep(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let pace = PACE.with(|of_thread| of_thread.borrow().clone());
        Box::pin(async move {
            TokioRuntime::sleep_until(deadline).await;
            if let Some(pace) = pace {
                pace.go().await;
            }
        })
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}
