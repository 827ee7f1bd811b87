//! Catches panics and reports them to the caller: printing them could block or panic again, and the panic would be
//! lost.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

/// Handling of a panic of this thread by the hook.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Leave it to the previous hook.
    Pass,
    /// Record its place.
    Place,
    /// Record its place, and its backtrace if the environment asks for backtraces.
    Backtrace,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Pass) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs user code; converts a panic into its message and place.
///
/// # Errors
/// The message of the panic, and its place.
pub fn catch<R>(code: impl FnOnce() -> R) -> Result<R, String> {
    catch_in(Mode::Place, code)
}

/// Runs code of Stead itself; converts a panic into its message, its place, and its backtrace if `RUST_BACKTRACE` asks
/// for one.
///
/// # Errors
/// The message of the panic, with the rest.
pub fn catch_own<R>(code: impl FnOnce() -> R) -> Result<R, String> {
    catch_in(Mode::Backtrace, code)
}

/// Records a panic of code that is caught here, for its catcher. Returns false for any other panic, which the hook must
/// report.
pub(crate) fn note(info: &PanicHookInfo<'_>) -> bool {
    let mode = MODE.get();
    if mode == Mode::Pass {
        return false;
    }
    let mut place = info.location().map(|location| format!("at {location}")).unwrap_or_default();
    if mode == Mode::Backtrace {
        place.push_str(&backtrace());
    }
    PLACE.set(Some(place));
    true
}

/// Returns the backtrace on lines of its own, if the environment asks for backtraces.
pub(crate) fn backtrace() -> String {
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    }
}

fn catch_in<R>(mode: Mode, code: impl FnOnce() -> R) -> Result<R, String> {
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !note(info) {
                default(info);
            }
        }));
    });
    let outer = MODE.replace(mode);
    // State that the code has changed is not used after a panic: its transaction is dropped.
    let result = panic::catch_unwind(AssertUnwindSafe(code));
    MODE.set(outer);
    result.map_err(|payload| {
        let message = message(&*payload);
        match PLACE.take() {
            Some(place) => format!("{message} ({place})"),
            None => message,
        }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_place() {
        assert_eq!(catch(|| 7), Ok(7));
        let panic = catch(|| -> () { panic!("no {}", "more") }).unwrap_err();
        assert!(panic.starts_with("no more (at ") && panic.contains("panics.rs"), "{panic}");
        assert!(catch(|| -> () { panic::panic_any(3) }).unwrap_err().starts_with("without a message"));
    }
}
