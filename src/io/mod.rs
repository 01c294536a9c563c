//! Safe owners of what the data path talks to: pods' TAPs and the underlay's sockets. No decisions here; how
//! the kernel's answers are to be understood is all.

mod host;
mod listeners;
mod tap;
mod timer;
mod underlay;

pub use host::{Mouths, Streams};
pub use listeners::{Knock, Listeners, turn_away};
pub use tap::Tap;
pub use timer::Timer;
pub use underlay::{OpenError, Options, Receiver, SLOTS, Sender, open};
