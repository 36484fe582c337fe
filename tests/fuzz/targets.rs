//! What must hold for any bytes from outside: one function for each way in, which panics when it does
//! not. The fuzzer runs them on what it makes up, `tests/it/corpora.rs` on what it found.

mod served;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use axum::response::IntoResponse;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sodium_model::admission::{Rules, admit};
use sodium_model::draft::{self, Draft, file_path_fault, read_command, read_document};
use sodium_model::image::Image;
use sodium_model::tree::{Faults, Node};
use sodium_model::{Allowed, DiskRules, Isolation, Limits, RestartPolicy, SandboxName, Spec};
use sodium_runtime::storage::workspace::{Wanted, Workspaces};
use sodium_shim::claim::Claim;
use sodium_shim::exit::Exit;
use sodium_shim::launch::Launch;
use sodium_shim::protocol::{self, Frame, FrameError, Reply, Request, Told, take_frame};
use sodium_sys::path::Tree;
use sodiumd::api::{self, ClientFrame};
use sodiumd::config::{self, Config, ConfigError, Raw};
use sodiumd::desired::{parse::parse, yaml};

pub use served::http;

/// Panics when what must hold does not.
pub type Target = fn(&[u8]);

/// All of them, by the name of their corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("spec_yaml", spec_yaml),
    ("config_json", config_json),
    ("image_json", image_json),
    ("shim_frames", shim_frames),
    ("shim_json", shim_json),
    ("http", http),
    ("console_frames", console_frames),
    ("paths", paths),
];

/// A file of specs is refused with the place of each fault, or declares what reads back as the same.
pub fn spec_yaml(bytes: &[u8]) {
    let rules = rules();
    match parse(bytes, &rules) {
        Ok(documents) => {
            for one in documents {
                declares_itself(&one.name, &one.labels, &one.spec, &rules);
            }
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a reason");
            for fault in faults {
                let at = fault.at.unwrap_or_else(|| panic!("no place: {fault}"));
                assert!(at.line > 0 && at.column > 0 && !fault.message.is_empty(), "{fault}");
            }
        }
    }
}

/// A configuration that loads says everything, within its bounds, and loads again as the same.
pub fn config_json(bytes: &[u8]) {
    let dir = scratch();
    let path = dir.path().join("config.json");
    let config = match load_config(&path, bytes) {
        Ok(config) => config,
        Err(ConfigError::Read { source, .. }) => {
            return assert_eq!(source.kind(), std::io::ErrorKind::InvalidData);
        }
        Err(ConfigError::Distrusted(why)) => panic!("{why}"),
        Err(ConfigError::Syntax { message, .. }) => {
            return assert!(message.contains(" line "), "no place: {message}");
        }
        Err(ConfigError::Faults { faults, .. }) => {
            return assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.is_empty()));
        }
    };
    let Config { sandboxes_path, state_path, run_path, desired_path, images_path, .. } = &config;
    for path in [sandboxes_path, state_path, run_path, desired_path, images_path] {
        assert!(path.is_absolute(), "{}", path.display());
    }
    assert!(config.isolation.satisfies(config.allowed.floor));
    for name in Limits::NAMES {
        assert!(config.default_limits.get(name).unwrap() <= Limits::max_of(name), "{name}");
    }
    assert!(config.token.as_ref().is_none_or(|token| !token.is_empty()));
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.trim_start_matches('\u{feff}').trim_start().starts_with('{'),
        "keys without names"
    );
    let raw: Raw = serde_json::from_str(text.trim_start_matches('\u{feff}')).unwrap();
    let again = load_config(&path, &serde_json::to_vec(&raw).unwrap());
    assert_eq!(again.expect("it loaded before"), config);
}

/// Without a `run_path` of its own, a configuration makes a directory under /run.
fn load_config(path: &Path, bytes: &[u8]) -> Result<Config, ConfigError> {
    let text = String::from_utf8_lossy(bytes);
    let json: Option<Value> = serde_json::from_str(text.trim_start_matches('\u{feff}')).ok();
    let mut object = json.and_then(|json| json.as_object().cloned()).unwrap_or_default();
    if !object.is_empty() && object.get("run_path").is_none_or(Value::is_null) {
        object.insert("run_path".to_owned(), json!("run"));
        fs::write(path, serde_json::to_vec(&object).unwrap()).unwrap();
    } else if text.trim_start_matches('\u{feff}').trim() == "{}" {
        fs::write(path, r#"{"run_path": "run"}"#).unwrap();
    } else {
        fs::write(path, bytes).unwrap();
    }
    // There may be a token in it.
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, own).unwrap();
    config::load(path)
}

/// A file is an image or a bad one; whoever names the image gets a spec that could be declared.
pub fn image_json(bytes: &[u8]) {
    let dir = scratch();
    let load = |bytes: &[u8]| {
        fs::write(dir.path().join("a.json"), bytes).unwrap();
        sodiumd::image::load(dir.path())
    };
    let (images, bad) = load(bytes);
    assert_eq!(images.len() + bad.len(), 1, "neither an image nor a bad one");
    for one in &bad {
        assert!(!one.message.is_empty());
    }
    let Some(image) = images.into_values().next() else { return };
    assert!(bytes.trim_ascii_start().starts_with(b"{"), "fields without their names");
    let (again, _) = load(&serde_json::to_vec(&image).unwrap());
    assert_eq!(again.get(&image.id), Some(&image));
    let required = image.variables.iter().filter(|variable| variable.required);
    let draft = Draft {
        image: Some(image.id.clone()),
        env: required.map(|variable| (variable.env.clone(), "x".to_owned())).collect(),
        ..Draft::default()
    };
    let rules = Rules { images: [(image.id.clone(), image)].into(), ..rules() };
    let spec = admit(&draft, &rules).unwrap_or_else(|faults| panic!("{faults:?}"));
    declares_itself(&SandboxName::try_from("web").unwrap(), &BTreeMap::new(), &spec, &rules);
}

/// Frames do not depend on how they were cut, and are the bytes they were made of. The first bytes say
/// how to cut the rest.
pub fn shim_frames(bytes: &[u8]) {
    let Some((cuts, wire)) = bytes.split_first_chunk::<4>() else { return };
    let whole = take_all(&[wire]);
    let mut pieces = Vec::new();
    let mut rest = wire;
    for cut in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at(usize::from(*cut).clamp(1, rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    assert_eq!(take_all(&pieces), whole);
    let mut at = 0;
    for frame in whole.0 {
        let again = match &frame {
            Frame::Control(json) => [&header(json.len(), 1)[..], json].concat(),
            Frame::Stdin { offset, bytes } => protocol::stdin(*offset, bytes),
            Frame::Output { is_stderr, bytes } => protocol::output(*is_stderr, bytes),
        };
        assert_eq!(again, wire[at..at + again.len()]);
        at += again.len();
        if let Frame::Control(json) = frame {
            shim_json(&json);
        }
    }
}

fn header(payload_bytes: usize, kind: u8) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(1 + payload_bytes).unwrap().to_le_bytes();
    [a, b, c, d, kind]
}

fn take_all(pieces: &[&[u8]]) -> (Vec<Frame>, Option<FrameError>) {
    let (mut buffer, mut frames) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match take_frame(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Whatever a shim and a daemon of another release say to each other: what is understood is understood
/// again as it is written back, and with a field that is not known yet.
pub fn shim_json(bytes: &[u8]) {
    understood_again::<Request>(bytes);
    understood_again::<Reply>(bytes);
    understood_again::<protocol::State>(bytes);
    understood_again::<Told>(bytes);
    understood_again::<Launch>(bytes);
    understood_again::<Claim>(bytes);
    understood_again::<Exit>(bytes);
}

fn understood_again<T>(bytes: &[u8])
where
    T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug,
{
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return };
    let mut json = serde_json::to_value(&message).unwrap();
    let again: T = serde_json::from_slice(&serde_json::to_vec(&json).unwrap()).unwrap();
    assert_eq!(again, message);
    json["a_later_field"] = json!([{}]);
    assert_eq!(serde_json::from_value::<T>(json).unwrap(), message);
}

/// What the clients of consoles and of exec say first, and later.
pub fn console_frames(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match api::read_frame(text) {
        Err(error) => assert!(error.into_response().status().is_client_error()),
        Ok(frame) => {
            let json = match &frame {
                ClientFrame::Input(line) => {
                    json!({"type": "input", "content": line.strip_suffix('\n').unwrap()})
                }
                ClientFrame::Start(None) => json!({"type": "start"}),
                ClientFrame::Start(Some(command)) => {
                    can_be_run(command);
                    json!({"type": "start", "command": command[0], "args": command[1..]})
                }
                ClientFrame::Stop => json!({"type": "stop"}),
                ClientFrame::Kill => json!({"type": "kill"}),
                ClientFrame::Resize { cols, rows } => {
                    json!({"type": "resize", "cols": cols, "rows": rows})
                }
            };
            assert_eq!(api::read_frame(&json.to_string()).unwrap(), frame);
        }
    }
    match api::first_frame(text) {
        Err(error) => assert!(error.into_response().status().is_client_error()),
        Ok(program) => {
            can_be_run(&program.command);
            let dir = program.work_dir.as_deref().unwrap_or("/");
            assert!(dir.starts_with('/') && !dir.contains('\0'), "{dir:?}");
            let mut json = json!({"command": program.command, "env": program.env});
            if let Some(dir) = &program.work_dir {
                json["work_dir"] = json!(dir);
            }
            if let Some((cols, rows)) = program.tty {
                json["tty"] = json!(true);
                json["cols"] = json!(cols);
                json["rows"] = json!(rows);
            }
            assert_eq!(api::first_frame(&json.to_string()).unwrap(), program);
        }
    }
}

/// A command that a spec could have.
fn can_be_run(command: &[String]) {
    let mut faults = Faults::default();
    read_command(&mut faults, "command", &Node::from(json!(command)));
    assert!(faults.is_empty() && !command.is_empty(), "{command:?}: {faults:?}");
}

/// Files laid into a directory whose owner planted symlinks that lead out: each line is a path, `@` its
/// absolute form outside. Nothing outside changes; and where nothing is planted, what a spec may name
/// is laid.
pub fn paths(bytes: &[u8]) {
    let dir = scratch();
    let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
    fs::create_dir_all(inside.join("d/e")).unwrap();
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let plant = |to: &Path, name: &str| std::os::unix::fs::symlink(to, inside.join(name)).unwrap();
    plant(&outside, "l");
    plant(Path::new("../out"), "r");
    plant(Path::new("../../.."), "d/up");
    plant(&outside.join("kept"), "f");
    plant(Path::new("../out/new"), "n");
    plant(Path::new("."), "d/e/o");
    plant(Path::new("/proc/self/cwd"), "p");
    let before = listed(dir.path(), &inside);
    let tree = Tree::open(&inside, None).unwrap();
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.split('\n').take(16).collect();
    for (count, line) in lines.iter().enumerate() {
        let path = line.replace('@', &outside.to_string_lossy());
        let content = vec![b'x'; count + 8];
        let known = tree.exists(&path);
        match tree.ensure_file(&path, &content) {
            Err(_) => (),
            Ok(written) => {
                assert!(known || written, "{path:?} was there and was not");
                let at = inside.join(&path);
                assert!(fs::symlink_metadata(&at).unwrap().is_file(), "{path:?}");
                assert_eq!(fs::read(&at).unwrap(), content, "{path:?}");
                assert!(tree.exists(&path) && !tree.ensure_file(&path, &content).unwrap());
            }
        }
    }
    assert_eq!(listed(dir.path(), &inside), before, "something outside has changed");
    lays_what_a_spec_may_name(dir.path(), &lines);
}

fn lays_what_a_spec_may_name(dir: &Path, lines: &[&str]) {
    let fits = |line: &&&str| file_path_fault(line).is_none();
    let named: Value =
        lines.iter().filter(fits).map(|line| (line.to_string(), json!(line))).collect();
    let mut faults = Faults::default();
    let draft = draft::read_spec(&mut faults, "spec", &Node::from(json!({"files": named})));
    if !faults.is_empty() {
        return;
    }
    let spaces = Workspaces::open(&dir.join("spaces"), false, &DiskRules::default()).unwrap();
    let laid = spaces.prepare(&Wanted {
        uid: Default::default(),
        host_uid: 0,
        bytes: None,
        ephemeral: false,
        image_files: &BTreeMap::new(),
        files: &draft.files,
    });
    let laid =
        laid.map(|place| place.files).unwrap_or_else(|error| panic!("{error}: {}", error.source));
    for (path, content) in &draft.files {
        assert_eq!(&fs::read_to_string(laid.join(path)).unwrap(), content, "{path:?}");
    }
}

/// Everything below `dir` but for `except`, with what it holds.
fn listed(dir: &Path, except: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path != except {
                pending.push(path.clone());
            }
            found.insert(path.display().to_string(), fs::read(&path).unwrap_or_default());
        }
    }
    found
}

/// The rules of a usual daemon, with two images.
fn rules() -> Rules {
    let read = |text: &str| -> Image { serde_json::from_str(text).unwrap() };
    let images = [
        read(include_str!("../../images/javascript.json")),
        read(include_str!("../../images/bash.json")),
    ];
    Rules {
        default_isolation: Isolation::Bubblewrap,
        default_limits: Limits::DEFAULT,
        allowed: Allowed { network_enabled: true, ..Allowed::default() },
        images: images.into_iter().map(|image| (image.id.clone(), image)).collect(),
        default_policy: RestartPolicy::OnFailure,
    }
}

/// A whole spec is written as it is: as JSON to the API, as JSON in a file, and as the YAML that the
/// daemon itself writes. Each must mean the same.
fn declares_itself(
    name: &SandboxName,
    labels: &BTreeMap<String, String>,
    spec: &Spec,
    rules: &Rules,
) {
    let document = json!({
        "apiVersion": draft::API_VERSION,
        "kind": draft::KIND,
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    });
    let read = read_document(&Node::from(document.clone()))
        .unwrap_or_else(|faults| panic!("sent back: {faults:?}"));
    assert_eq!((&read.name, &read.labels), (name, labels));
    assert_eq!(&admit(&read.draft, rules).expect("it was admitted before"), spec);
    let resolved: usize = spec.resolved_command().iter().map(String::len).sum();
    assert!(spec.command_fault().is_none() && resolved <= 2 << 20, "{resolved} bytes of command");
    // A JSON text may hold these as they are, a YAML text may not.
    let mut json = document.to_string();
    for odd in ('\u{7f}'..='\u{9f}').chain(['\u{fffe}', '\u{ffff}']) {
        json = json.replace(odd, &format!("\\u{:04x}", u32::from(odd)));
    }
    for text in [yaml::write(&document), json] {
        let again = parse(text.as_bytes(), rules)
            .unwrap_or_else(|faults| panic!("written as {text:?}: {faults:?}"));
        assert_eq!(again.len(), 1, "{text:?}");
        assert_eq!((&again[0].name, &again[0].labels), (name, labels), "{text:?}");
        assert_eq!(&again[0].spec, spec, "{text:?}");
    }
}

/// A directory of its own, in memory where there is such a place.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("sodium-fuzz-").tempdir_in(memory);
    made.or_else(|_| tempfile::tempdir()).unwrap()
}
