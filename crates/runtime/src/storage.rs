//! Where the files of sandboxes lie: a workspace each, on a volume that bounds it.

pub mod fsops;
pub mod volume;
pub mod workspace;
