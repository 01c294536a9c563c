//! Panics that cost a part of the node and not all of it: caught, with their words, for whoever goes on.
//!
//! This relies on panics that unwind (`Cargo.toml` keeps them so).

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

thread_local! {
    /// Calls of [`caught`] under way.
    static CATCHING: Cell<u32> = const { Cell::new(0) };
    /// What the last panic said.
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A panic that was caught.
pub struct Panic {
    /// Its message and place, and where it was asked for (`RUST_BACKTRACE`) the way there.
    pub said: String,
    /// To be thrown on.
    pub payload: Box<dyn Any + Send>,
}

impl Panic {
    /// Tell that one came at what somebody asked at the admin socket.
    pub fn tell_of_request(&self) {
        log::error!(
            "podwire panicked at a client's request, which is a bug (please report it): {}",
            self.said
        );
    }
}

/// Keep what a panic says for whoever catches it, instead of printing it each time. Panics that nobody catches are printed
/// as before. Once, when the process begins.
pub fn listen() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match CATCHING.get() {
        0 => before(info),
        _ => SAID.set(words(info)),
    }));
}

fn words(info: &PanicHookInfo<'_>) -> String {
    let at = info.location().map(|at| format!(" at {at}")).unwrap_or_default();
    let mut said = format!("\"{}\"{at}", message(info.payload()));
    let way = Backtrace::capture();
    if way.status() == BacktraceStatus::Captured {
        said = format!("{said}\n{way}");
    }
    said
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Do some work.
///
/// # Errors
/// The panic that ended it. The caller sets right what was half done then.
pub fn caught<R>(work: impl FnOnce() -> R) -> Result<R, Panic> {
    CATCHING.set(CATCHING.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(CATCHING.get() - 1);
    result.map_err(|payload| {
        let mut said = SAID.take();
        if said.is_empty() {
            said = format!("\"{}\"", message(&*payload));
        }
        Panic { said, payload }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_words() {
        assert_eq!(caught(|| 7).map_err(|p| p.said).unwrap(), 7);
        let inner = || caught(|| -> () { panic!("inner {}", 1) }).err().unwrap().said;
        let said = caught(inner).map_err(|p| p.said).unwrap();
        assert!(said.contains("inner 1"), "{said}");
        let payload = caught(|| -> () { panic!("outer") }).err().unwrap().payload;
        assert_eq!(message(&*payload), "outer");
    }
}
