//! From what was written to a whole [`Spec`]: the image's defaults, then the configuration's, then
//! the rules about fields taken together. What comes out is stored, so defaults are decided once.

use std::collections::BTreeMap;

use crate::allowed::Allowed;
#[cfg(any(test, feature = "testing"))]
use crate::allowed::Ceilings;
use crate::draft::{self, Draft, Legible};
use crate::image::Image;
use crate::name::SandboxName;
use crate::spec::{
    BackoffRange, Isolation, Limits, Network, Restart, RestartPolicy, Spec, State, Stop,
};
use crate::time::Span;
use crate::tree::{Faults, Node};
use crate::violation::{Violation, suggestion};

/// What this daemon allows and assumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub default_isolation: Isolation,
    pub default_limits: Limits,
    pub allowed: Allowed,
    pub images: BTreeMap<String, Image>,
    pub default_policy: RestartPolicy,
}

#[cfg(any(test, feature = "testing"))]
impl Rules {
    /// That refuse something of each kind: bubblewrap is the floor, 128 MB the ceiling, and there is no image.
    pub fn strict() -> Self {
        let ceilings = Ceilings { memory_mb: 128, ..Ceilings::NONE };
        Self {
            default_isolation: Isolation::Bubblewrap,
            default_limits: Limits::DEFAULT,
            allowed: Allowed { floor: Isolation::Bubblewrap, ceilings, ..Allowed::default() },
            images: BTreeMap::new(),
            default_policy: RestartPolicy::OnFailure,
        }
    }
}

/// A sandbox as a document declares it, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    pub name: SandboxName,
    pub labels: BTreeMap<String, String>,
    pub spec: Spec,
}

/// Reads a document and admits it. The faults of both come back together, in the order in which they stand in it.
/// `objection` says what else is wrong with its name.
pub fn admit_document(
    node: &Node,
    rules: &Rules,
    objection: impl FnOnce(&SandboxName) -> Option<String>,
) -> Result<Admitted, Faults> {
    let Legible { name, labels, draft, faults } = draft::read(node);
    let readable = name.as_ref().filter(|_| !faults.touch("metadata.name"));
    let objection = readable.and_then(objection);
    let objection = objection.map(|message| Violation::new("metadata.name", message));
    let (spec, found) = judge(&draft, rules, &|path| faults.touch(path));
    let faults = faults.and_later(objection.into_iter().chain(found), node);
    match name {
        Some(name) if faults.is_empty() => Ok(Admitted { name, labels, spec }),
        Some(_) | None => Err(faults),
    }
}

/// Fills in the defaults and checks the whole of what was read without a fault. All faults are reported.
pub fn admit(draft: &Draft, rules: &Rules) -> Result<Spec, Vec<Violation>> {
    let (spec, faults) = judge(draft, rules, &|_| false);
    if faults.is_empty() { Ok(spec) } else { Err(faults) }
}

/// Fills in the defaults and says what is wrong with the whole, as far as it could be read.
///
/// Assumes: `unread` is true of a field, such as `spec.limits.memory_mb`, whose own fault was told already.
///
/// Guarantees: nothing is said of such a field, of the default in its place, or of what would depend on it. The
/// spec is one only if all was read and nothing is wrong with it.
pub fn judge(
    draft: &Draft,
    rules: &Rules,
    unread: &dyn Fn(&str) -> bool,
) -> (Spec, Vec<Violation>) {
    let mut faults = Vec::new();
    let image = find_image(draft, rules, &mut faults);
    let spec = fill(draft, image, rules);
    faults.extend(rules.allowed.violations(&spec));
    faults.extend(missing_command(draft, &spec, unread));
    faults.extend(backoff_faults(&spec, unread));
    faults.extend(missing_variables(&spec, image));
    // Its size is that of the command and of all variables.
    if !["spec.command", "spec.env", "spec.image"].into_iter().any(unread) {
        faults.extend(spec.command_fault());
    }
    faults.retain(|fault| !unread(&fault.path));
    (spec, faults)
}

fn find_image<'r>(
    draft: &Draft,
    rules: &'r Rules,
    faults: &mut Vec<Violation>,
) -> Option<&'r Image> {
    let id = draft.image.as_ref()?;
    let found = rules.images.get(id);
    if found.is_none() {
        let hint = suggestion(id, rules.images.keys().map(String::as_str));
        let known: Vec<&str> = rules.images.keys().map(String::as_str).collect();
        let message = format!("no image {id:?}; there are {}{hint}", known.join(", "));
        faults.push(Violation::new("spec.image", message));
    }
    found
}

/// The limits of a sandbox that asks for none.
pub fn limits_of(image: Option<&Image>, rules: &Rules) -> Limits {
    let mut limits = rules.default_limits;
    for (name, value) in image.into_iter().flat_map(|image| &image.limits) {
        if let Some(limit) = limits.get_mut(name) {
            *limit = *value;
        }
    }
    for name in Limits::ALL {
        if let Some(limit) = limits.get_mut(name) {
            *limit = rules.allowed.default_limit(name, *limit);
        }
    }
    limits
}

fn fill(draft: &Draft, image: Option<&Image>, rules: &Rules) -> Spec {
    let mut limits = limits_of(image, rules);
    for (name, value) in &draft.limits {
        if let Some(limit) = limits.get_mut(name) {
            *limit = *value;
        }
    }
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for variable in image.into_iter().flat_map(|image| &image.variables) {
        env.insert(variable.env.clone(), variable.default.clone());
    }
    env.extend(draft.env.clone());
    let written = draft.command.clone().filter(|command| !command.is_empty());
    let initial = draft.backoff_initial.unwrap_or(Span::seconds(1));
    Spec {
        image: draft.image.clone(),
        isolation: draft.isolation.unwrap_or(rules.default_isolation),
        command: written.or_else(|| image.map(Image::command)).unwrap_or_default(),
        env,
        state: draft.state.unwrap_or(State::Running),
        restart: Restart {
            policy: draft.restart_policy.unwrap_or(rules.default_policy),
            backoff: BackoffRange {
                initial,
                max: draft.backoff_max.unwrap_or_else(|| Span::seconds(300).max(initial)),
            },
            max_failures: draft.max_failures.unwrap_or(0),
        },
        stop: Stop {
            signal: draft.stop_signal.clone().unwrap_or_else(|| "SIGTERM".to_owned()),
            grace: draft
                .stop_grace
                .unwrap_or_else(|| rules.allowed.ceilings.grace(Span::seconds(10))),
        },
        tty: draft.tty.unwrap_or(false),
        network: draft.network.unwrap_or(Network::None),
        limits,
        strict: draft.strict.unwrap_or(false),
        ephemeral: draft.ephemeral.unwrap_or(false),
        files: draft.files.clone(),
    }
}

fn missing_command(draft: &Draft, spec: &Spec, unread: &dyn Fn(&str) -> bool) -> Option<Violation> {
    let is_missing = spec.command.is_empty() && draft.image.is_none();
    let is_wanted = spec.state == State::Running;
    if !is_missing || !is_wanted || ["spec.image", "spec.state"].into_iter().any(unread) {
        return None;
    }
    let message = "is missing, and no image is named whose startup it could be";
    Some(Violation::new("spec.command", message))
}

fn backoff_faults(spec: &Spec, unread: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let BackoffRange { initial, max } = spec.restart.backoff;
    let mut faults = Vec::new();
    if initial.0 == 0 {
        faults.push(Violation::new("spec.restart.backoff.initial", "must be more than 0"));
    }
    if max < initial && !unread("spec.restart.backoff.initial") {
        faults.push(Violation::new("spec.restart.backoff.max", "is shorter than initial"));
    }
    faults
}

fn missing_variables(spec: &Spec, image: Option<&Image>) -> Vec<Violation> {
    let mut faults = Vec::new();
    for variable in image.into_iter().flat_map(|image| &image.variables) {
        let missing = spec.env.get(&variable.env).is_none_or(String::is_empty);
        if variable.required && missing {
            let message = format!("is required by image {:?}", spec.image.as_deref().unwrap_or(""));
            faults.push(Violation::new(format!("spec.env.{}", variable.env), message));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::read_spec;

    fn rules() -> Rules {
        let image = serde_json::json!({
            "id": "javascript", "name": "JavaScript", "runtime": "node", "startup": "node {{MAIN_FILE}}",
            "limits": {"timeout_seconds": 0, "memory_mb": 256},
            "variables": [{"name": "Main", "env": "MAIN_FILE", "default": "index.js", "required": true}]
        });
        Rules {
            allowed: Allowed { floor: Isolation::Bubblewrap, ..Allowed::default() },
            images: [("javascript".to_owned(), serde_json::from_value(image).unwrap())].into(),
            ..Rules::strict()
        }
    }

    fn admitted(json: serde_json::Value) -> Result<Spec, Vec<String>> {
        let mut faults = Faults::default();
        let draft = read_spec(&mut faults, "spec", &json.into());
        assert!(faults.is_empty(), "{faults:?}");
        admit(&draft, &rules())
            .map_err(|violations| violations.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_images_defaults_stand_above_the_configurations_and_below_the_specs() {
        let spec = admitted(serde_json::json!({
            "image": "javascript", "limits": {"memory_mb": 64}, "env": {"A": "b"}
        }))
        .unwrap();
        assert_eq!((spec.limits.memory_mb, spec.limits.timeout_seconds), (64, 0));
        assert_eq!((spec.limits.max_files, spec.limits.output), (1024, 16 << 20));
        assert_eq!(spec.command, ["node", "{{MAIN_FILE}}"]);
        assert_eq!(spec.resolved_command(), ["node", "index.js"]);
        assert_eq!(spec.env.len(), 2);
        // Unlimited is an answer, and is no other when what was stored is read and written again.
        let unlimited =
            admitted(serde_json::json!({"image": "javascript", "limits": {"output": 0}}));
        let stored = serde_json::to_value(unlimited.unwrap()).unwrap();
        assert_eq!(stored["limits"]["output"], 0);
        let again =
            admitted(serde_json::json!({"image": "javascript", "limits": stored["limits"]}));
        assert_eq!(again.unwrap().limits.output, 0);
        // What was declared before there was a default has none.
        let mut old = stored;
        old["limits"].as_object_mut().unwrap().remove("output");
        assert_eq!(serde_json::from_value::<Spec>(old).unwrap().limits.output, 0);
        // What was admitted stands alone: nothing in it is left to be filled in later.
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(serde_json::from_value::<Spec>(json).unwrap(), spec);
    }

    #[test]
    fn a_command_that_no_kernel_takes_is_refused() {
        let faults = admitted(serde_json::json!({
            "command": ["echo", "{{A}}".repeat(1_000)], "env": {"A": "x".repeat(1_000)}
        }));
        assert_eq!(
            faults.unwrap_err(),
            ["spec.command[1]: is 1000000 bytes with its variables, the most is 131071"]
        );
    }

    #[test]
    fn what_is_above_a_ceiling_is_refused_and_what_nobody_asked_for_is_at_most_there() {
        let ceilings = Ceilings {
            memory_mb: 128,
            timeout_seconds: 600,
            output: 1 << 20,
            stop_grace: Span::seconds(60),
            ..Ceilings::NONE
        };
        let allowed = Allowed { ceilings, ..Allowed::default() };
        let rules = Rules { allowed, ..rules() };
        let admitted = |json: serde_json::Value| {
            let draft = read_spec(&mut Faults::default(), "spec", &json.into());
            admit(&draft, &rules)
        };
        let limits = admitted(serde_json::json!({"image": "javascript"})).unwrap().limits;
        assert_eq!((limits.memory_mb, limits.timeout_seconds, limits.output), (128, 600, 1 << 20));
        assert_eq!((limits.max_files, limits.io), (1024, 0));
        let faults = admitted(serde_json::json!({
            "command": ["sh"], "limits": {"memory_mb": 129, "timeout_seconds": 0},
            "stop": {"grace": "61s"}
        }));
        let faults: Vec<String> = faults.unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            faults,
            [
                "spec.limits.memory_mb: 129 is above 128, the ceiling set by \"maximum_limits.memory_mb\" in config.json",
                "spec.limits.timeout_seconds: 0 (unlimited) is above 600, the ceiling set by \"maximum_limits.timeout_seconds\" in config.json",
                "spec.stop.grace: 1m 1s is above 1m, the ceiling set by \"maximum_limits.stop_grace\" in config.json",
            ]
        );
    }

    #[test]
    fn faults_of_the_whole_are_reported_together() {
        let faults = admitted(serde_json::json!({
            "isolation": "process", "network": "host",
            "restart": {"backoff": {"initial": "2s", "max": "1s"}}
        }))
        .unwrap_err();
        assert_eq!(
            faults,
            [
                "spec.isolation: process is weaker than bubblewrap, the floor set by \"isolation_floor\" in config.json",
                "spec.network: host needs \"network\": {\"enabled\": true} in config.json",
                "spec.command: is missing, and no image is named whose startup it could be",
                "spec.restart.backoff.max: is shorter than initial",
            ]
        );
        let faults = admitted(serde_json::json!({"image": "javascirpt"})).unwrap_err();
        assert_eq!(
            faults[0],
            "spec.image: no image \"javascirpt\"; there are javascript; did you mean \"javascript\"?"
        );
        let faults = admitted(serde_json::json!({"image": "javascript", "env": {"MAIN_FILE": ""}}));
        assert_eq!(
            faults.unwrap_err(),
            ["spec.env.MAIN_FILE: is required by image \"javascript\""]
        );
    }

    /// Paths of the faults of a document with this spec, where the default isolation is itself too weak.
    fn paths(spec: serde_json::Value) -> Vec<String> {
        let rules = Rules { default_isolation: Isolation::Process, ..rules() };
        let document = serde_json::json!({
            "apiVersion": "sodium.dev/v1", "kind": "Sandbox", "metadata": {"name": "web"}, "spec": spec
        });
        let faults = admit_document(&document.into(), &rules, |_| None).unwrap_err();
        faults.into_list().into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn of_what_could_not_be_read_nothing_more_is_said() {
        assert_eq!(paths(serde_json::json!({"command": ["sh"]})), ["spec.isolation"]);
        assert_eq!(
            paths(serde_json::json!({"command": ["sh"], "isolation": 7})),
            ["spec.isolation"]
        );
        let strong = |field: &str, value: serde_json::Value| {
            paths(serde_json::json!({"isolation": "gvisor", (field): value}))
        };
        assert_eq!(strong("command", serde_json::json!(7)), ["spec.command"]);
        assert_eq!(strong("comand", serde_json::json!(["sh"])), ["spec.comand"]);
        assert_eq!(strong("image", serde_json::json!(7)), ["spec.image"]);
        assert_eq!(strong("imgae", serde_json::json!("javascript")), ["spec.imgae"]);
        assert_eq!(strong("state", serde_json::json!("stoped")), ["spec.state"]);
        assert_eq!(strong("tty", serde_json::json!(7)), ["spec.command", "spec.tty"]);
    }

    #[test]
    fn a_command_is_measured_when_all_that_it_is_made_of_could_be_read() {
        let long = "x".repeat(200_000);
        let with = |env: serde_json::Value, tty: serde_json::Value| {
            let command = serde_json::json!(["echo", long]);
            paths(
                serde_json::json!({"isolation": "gvisor", "command": command, "env": env, "tty": tty}),
            )
        };
        let (good, bad) = (serde_json::json!({"A": "b"}), serde_json::json!({"A": 7}));
        assert_eq!(with(good, serde_json::json!(7)), ["spec.command[1]", "spec.tty"]);
        assert_eq!(with(bad, serde_json::json!(7)), ["spec.env.A", "spec.tty"]);
    }
}
