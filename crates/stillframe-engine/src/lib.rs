//! The verbs of Stillframe: [`create`](create::create), [`restore`](restore::restore), [`verify`](verify::verify),
//! [`check`](check::check), [`repair`](repair::repair_backups), [`forget`](forget::forget), [`prune`](prune::prune), and images that
//! are kept without a repository ([`create_image`]).
//!
//! One module a verb, with its options, its plan where it has one, and its outcome. This is the only place where capture,
//! repository and jobs meet: none of them knows the others. A verb takes a running [`stillframe_jobs::Job`] (for phases, progress
//! and cancel) and [`Surroundings`] (clock, chance, share of the machine, somebody to tell). It knows nothing of
//! terminals and configuration.
//!
//! ```
//! use stillframe_engine::Reserve;
//!
//! // A backup never fills the disk that the live data are on: the default reserve is the larger of 5 % and 1 GiB.
//! assert_eq!(Reserve::Default.of(100 << 30), 5 << 30);
//! ```
#![forbid(unsafe_code)]

mod base_hint;
mod capturing;
pub mod check;
pub mod create;
mod cutting;
mod engine_of;
mod error;
mod event;
mod filling;
pub mod forget;
mod image;
mod kind;
mod list_order;
mod listening;
#[cfg(test)]
mod made_up;
mod named_source;
pub mod prune;
mod remark;
pub mod repair;
mod reserve;
pub mod restore;
mod retention;
mod surroundings;
mod target;
mod unchanged;
pub mod verify;
mod workers;

pub use error::EngineError;
pub use event::Event;
pub use image::{ImageOptions, ImageOutcome, create_image};
pub use kind::Kind;
pub use named_source::NamedSource;
pub use reserve::Reserve;
pub use retention::Retention;
pub use surroundings::Surroundings;
