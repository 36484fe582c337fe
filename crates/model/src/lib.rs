//! The nouns. Pure data and the rules that make it valid: no I/O, no clock, no randomness.
//!
//! ```text
//!   YAML or JSON --> tree --> draft --admission (image, defaults)--> Spec
//!   Sandbox = identity + Spec + owner + power (what people want)
//!           + history + instance + Status (what the daemon knows)
//! ```

pub mod admission;
pub mod allowed;
pub mod arguments;
pub mod bounds;
pub mod checkpoint;
pub mod condition;
pub mod disk;
pub mod draft;
pub mod event;
pub mod ids;
pub mod image;
pub mod instance;
pub mod name;
pub mod observed;
pub mod plan;
pub mod platform;
pub mod reading;
pub mod record;
pub mod sandbox;
mod schema;
pub mod spec;
pub mod status;
pub mod text;
pub mod time;
pub mod tree;
pub mod violation;
pub mod weight;

pub use allowed::{Allowed, Ceilings, Enforce, Promised, Totals};
pub use bounds::Bounds;
pub use checkpoint::Checkpoint;
pub use condition::{Condition, ConditionType, Truth};
pub use disk::DiskRules;
pub use event::{Event, Level};
pub use ids::IdRange;
pub use instance::{
    Counted, Counters, ExitKind, ExitRecord, Iid, Instance, InstancePhase, StopReason,
};
pub use name::{NameError, SandboxName};
pub use observed::Observed;
pub use platform::Platform;
pub use reading::{DiskReading, InUse, Reading};
pub use record::Record;
pub use sandbox::{Deletion, Edit, History, Hold, Owner, Power, Sandbox};
pub use spec::{Isolation, Limits, Network, Restart, RestartPolicy, Spec, State, Stop};
pub use status::{Breaches, LimitStatus, Phase, Status, Verdict, Wall, WallStatus, WallVerdict};
pub use time::{Span, Time};
pub use violation::{Position, Violation};
