//! Texts before and after.

use super::*;

const HEAD: &str = "apiVersion: sodium.dev/v1\nkind: Sandbox\n";

fn document(name: &str, command: &str) -> String {
    format!("{HEAD}metadata: {{name: {name}}}\nspec: {{command: [{command}]}}\n")
}

fn named(name: &str) -> SandboxName {
    SandboxName::try_from(name).unwrap()
}

#[track_caller]
fn check_put(text: &str, want: &str) {
    let done = put(text, &named("web"), &document("web", "new")).unwrap();
    assert_eq!(done.text, want);
}

#[track_caller]
fn check_removed(text: &str, want: &str) {
    assert_eq!(remove(text, &named("web")).unwrap(), Removed::Text(want.to_owned()));
}

#[test]
fn one_document_is_replaced_and_the_others_stay_with_their_comments() {
    let (web, new) = (document("web", "old"), document("web", "new"));
    let db = format!(
        "# of db\n{HEAD}metadata: {{name: db}} # here\nspec:\n  # inside\n  command: [x]\n  env:\n    A: |\n      --- no mark\n      # no comment\n# after db\n"
    );
    let text = |web: &str| {
        format!("# head\n---\n{db}---\n# of web\n{web}\n# tail\n---\n{}", document("c", "y"))
    };
    let done = put(&text(&web), &named("web"), &new).unwrap();
    assert_eq!((done.text, done.replaced), (text(&new), true));
    for (text, want) in [
        (web.clone(), new.clone()),
        (format!("# head\n\n{web}"), format!("# head\n\n{new}")),
        (format!("--- # web\n{web}"), format!("--- # web\n{new}")),
        (format!("{web}...\n---\n{db}"), format!("{new}...\n---\n{db}")),
        (format!("{web}---\n{db}"), format!("{new}---\n{db}")),
        (format!("{db}---\n{}", web.trim_end()), format!("{db}---\n{new}")),
        (web.replace('\n', "\r\n"), new),
    ] {
        check_put(&text, &want);
    }
}

#[test]
fn a_text_whose_lines_others_would_count_otherwise_stays_as_it_is() {
    let text = format!("# db\r---\r{}---\n{}", document("db", "x"), document("web", "old"));
    put(&text, &named("web"), &document("web", "new")).unwrap_err();
    remove(&text, &named("web")).unwrap_err();
}

#[test]
fn a_document_on_the_line_of_its_mark_is_replaced_with_it() {
    let json = serde_json::json!({"apiVersion": "sodium.dev/v1", "kind": "Sandbox",
        "metadata": {"name": "web"}, "spec": {"command": ["old"]}});
    let (db, new) = (document("db", "x"), document("web", "new"));
    check_put(&format!("{db}--- {json}\n---\n# c\n"), &format!("{db}---\n{new}---\n# c\n"));
    check_put(&json.to_string(), &new);
    check_put(&format!("{json:#}\n"), &new);
}

#[test]
fn what_is_not_there_yet_comes_last() {
    let (db, new) = (document("db", "x"), document("web", "new"));
    check_put("", &new);
    check_put("# nothing", &format!("# nothing\n{new}"));
    check_put(&db, &format!("{db}---\n{new}"));
    check_put(db.trim_end(), &format!("{db}---\n{new}"));
    assert!(!put(&db, &named("web"), &new).unwrap().replaced);
}

#[test]
fn a_document_at_fault_is_replaced_too() {
    let (db, new) = (document("db", "x"), document("web", "new"));
    check_put(
        &format!("{db}---\nmetadata: {{name: web}}\nspce: {{}}\n"),
        &format!("{db}---\n{new}"),
    );
}

#[test]
fn one_document_is_removed_and_the_others_stay() {
    let (web, db) = (document("web", "old"), document("db", "x"));
    check_removed(&format!("{db}---\n{web}"), &db);
    check_removed(&format!("{db}---\n# of web\n{web}# tail\n"), &format!("{db}# tail\n"));
    check_removed(&format!("# head\n{web}---\n{db}"), &format!("# head\n---\n{db}"));
    let last = format!("...\n---\n{}", document("c", "y"));
    check_removed(&format!("{db}---\n{web}{last}"), &format!("{db}{last}"));
    assert_eq!(remove(&db, &named("web")).unwrap(), Removed::Absent);
    assert_eq!(remove("", &named("web")).unwrap(), Removed::Absent);
    let alone = format!("# head\n---\n{web}");
    assert_eq!(remove(&alone, &named("web")).unwrap(), Removed::Nothing);
}

#[test]
fn a_text_that_cannot_be_read_is_not_cut() {
    let new = document("web", "new");
    for text in ["a: [\n", "metadata: {name: web}\nmetadata: {name: db}\n"] {
        assert!(put(text, &named("web"), &new).is_err(), "{text:?}");
        assert!(remove(text, &named("web")).is_err(), "{text:?}");
    }
    let twice = format!("{0}---\n{0}", document("web", "old"));
    assert!(put(&twice, &named("web"), &new).is_err());
}
