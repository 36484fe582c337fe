//! Frames come out as they went in, however they are cut, and whichever release has written them.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::launch::Launch;

#[test]
fn frames_come_out_as_they_went_in_however_they_are_cut() {
    let mut wire = control(&Request::Status);
    wire.extend(stdin(7, b"abc"));
    wire.extend(output(true, b"out"));
    let mut buffer = Vec::new();
    let mut got = Vec::new();
    for byte in wire {
        buffer.push(byte);
        got.extend(take_frame(&mut buffer).unwrap());
    }
    assert_eq!(got[0], Frame::Control(br#"{"type":"status"}"#.to_vec()));
    assert_eq!(got[1], Frame::Stdin { offset: 7, bytes: b"abc".to_vec() });
    assert_eq!(got[2], Frame::Output { is_stderr: true, bytes: b"out".to_vec() });
    assert!(buffer.is_empty());
}

#[test]
fn a_broken_peer_is_refused() {
    let take = |bytes: &[u8]| take_frame(&mut bytes.to_vec());
    assert_eq!(take(&[0xFF; 8]), Err(FrameError::TooLong(0xFFFF_FFFF)));
    assert_eq!(take(&[0, 0, 0, 0]), Err(FrameError::TooShort(0)));
    assert_eq!(take(&[1, 0, 0, 0, 9]), Err(FrameError::Kind(9)));
    assert_eq!(take(&[2, 0, 0, 0, 2, 0]), Err(FrameError::TooShort(2)));
}

/// What each released version has written, one directory each, and must stay readable: shims outlive daemons.
fn releases() -> impl Iterator<Item = (u32, std::path::PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    (OLDEST..=VERSION).map(move |version| (version, root.join(version.to_string())))
}

/// Reads a frame of a release, and writes it as that did, if it is of this one.
#[track_caller]
fn check<T: Serialize + DeserializeOwned>(version: u32, frame: &Value) {
    let read: T =
        serde_json::from_value(frame.clone()).unwrap_or_else(|why| panic!("{frame}: {why}"));
    if version == VERSION {
        assert_eq!(serde_json::to_value(&read).unwrap(), *frame);
    }
    // Whatever a later one adds is no hindrance.
    let mut later = frame.clone();
    later["later"] = serde_json::json!([1]);
    serde_json::from_value::<T>(later).unwrap();
}

#[test]
fn every_frame_of_every_release_is_read_and_those_of_this_one_are_written() {
    for (version, dir) in releases() {
        let text = std::fs::read_to_string(dir.join("frames.jsonl")).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() > 20);
        for line in &lines {
            match line["to"].as_str().unwrap() {
                "shim" => check::<Request>(version, &line["frame"]),
                "daemon" => check::<Reply>(version, &line["frame"]),
                "client" => check::<Told>(version, &line["frame"]),
                "disk" => check::<Exit>(version, &line["frame"]),
                other => panic!("to {other}?"),
            }
        }
        let launch = std::fs::read_to_string(dir.join("launch.json")).unwrap();
        check::<Launch>(version, &serde_json::from_str(&launch).unwrap());
    }
}

#[test]
fn the_bytes_around_frames_are_those_of_every_release() {
    for (_, dir) in releases() {
        for line in std::fs::read_to_string(dir.join("frames.hex")).unwrap().lines() {
            let digits: String = line.split_whitespace().collect();
            let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
            let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
            let mut buffer = bytes.clone();
            let again = match take_frame(&mut buffer).unwrap().unwrap() {
                Frame::Control(json) => control(&serde_json::from_slice::<Value>(&json).unwrap()),
                Frame::Stdin { offset, bytes } => stdin(offset, &bytes),
                Frame::Output { is_stderr, bytes } => output(is_stderr, &bytes),
            };
            assert_eq!(again, bytes, "{line}");
        }
    }
}

#[test]
fn two_that_share_a_version_speak_the_newest() {
    assert_eq!(agree(1, 1), Some(1));
    assert_eq!(agree(OLDEST, VERSION + 3), Some(VERSION));
    assert_eq!(agree(VERSION + 1, VERSION + 3), None);
    assert_eq!(agree(0, OLDEST - 1), None);
    // The first release says nothing of an oldest.
    let first = r#"{"type":"hello","version":1,"epoch":3,"subscribe":true}"#;
    let Request::Hello { oldest, .. } = serde_json::from_str(first).unwrap() else { panic!() };
    assert_eq!(oldest, None);
}
