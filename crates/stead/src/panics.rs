//! Panics of user code: caught, told to the caller, and kept off the process's stderr.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs user code; a panic becomes its message and where it happened.
pub(crate) fn catch<R>(code: impl FnOnce() -> R) -> Result<R, String> {
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                LOCATION.set(info.location().map(ToString::to_string));
            } else {
                default(info);
            }
        }));
    });
    let outer = CATCHING.replace(true);
    // Nothing of what the code touched is looked at after a panic: its transaction is dropped.
    let result = panic::catch_unwind(AssertUnwindSafe(code));
    CATCHING.set(outer);
    result.map_err(|payload| {
        let message = message(&*payload);
        match LOCATION.take() {
            Some(location) => format!("{message} (at {location})"),
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
