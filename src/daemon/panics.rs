//! What a panic does: a line in the log with its place, and the end of the process.
//!
//! A panic is a defect. The thread that has it may leave marks behind for which others would wait for ever: a request
//! thread less, a seal that never ends. Nothing on the disk depends on an orderly end, so the daemon ends at once as if it
//! were killed: callers get an error instead of an answer that never comes, and the next mount recovers.

use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;

/// From here on a panic in any thread ends the process; logging has been started.
pub fn end_the_process() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{}\n{}", describe(panic), Backtrace::force_capture());
        std::process::abort();
    }));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let payload = panic.payload();
    let text =
        payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no text");
    format!(
        "defect: thread {name} panicked{place}: {text}; the daemon ends, the next mount recovers what was answered"
    )
}
