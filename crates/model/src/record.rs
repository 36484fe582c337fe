//! What is noted beside an instance that runs, boot-scoped like it: enough to declare its sandbox again if
//! the store is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::instance::Instance;
use crate::name::SandboxName;
use crate::sandbox::{History, Owner, Power, Sandbox};
use crate::spec::Spec;
use crate::status::Status;
use crate::time::Time;

/// A sandbox of which something runs, as it was when that was last changed by us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: SandboxName,
    pub uid: Uuid,
    pub owner: Owner,
    pub labels: BTreeMap<String, String>,
    pub generation: u64,
    pub spec: Spec,
    pub created_at: Time,
    pub host_uid: u32,
    pub power: Power,
    pub history: History,
    pub instance: Instance,
}

impl Record {
    /// `None` where nothing runs.
    pub fn of(sandbox: &Sandbox) -> Option<Self> {
        let instance = Instance::clone(sandbox.live()?);
        Some(Self {
            name: sandbox.name.clone(),
            uid: sandbox.uid,
            owner: sandbox.owner.clone(),
            labels: sandbox.labels.clone(),
            generation: sandbox.generation,
            spec: Spec::clone(&sandbox.spec),
            created_at: sandbox.created_at,
            host_uid: sandbox.host_uid,
            power: sandbox.power,
            history: sandbox.history.clone(),
            instance,
        })
    }

    /// Declared again. What it has come to since is seen by the next look at it.
    pub fn into_sandbox(self) -> Sandbox {
        Sandbox {
            name: self.name,
            uid: self.uid,
            owner: self.owner,
            labels: self.labels,
            generation: self.generation,
            spec: Arc::new(self.spec),
            created_at: self.created_at,
            host_uid: self.host_uid,
            power: self.power,
            deletion: None,
            history: self.history,
            instance: Some(Arc::new(self.instance)),
            status: Status::default(),
            rv: 0,
        }
    }
}
