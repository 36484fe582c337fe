//! What is begun again after an end, and what a change of each field costs.

use super::*;
use crate::{Network, Restart};

/// A server that ends well because it was asked to has not completed.
#[test]
fn what_was_asked_to_end_is_begun_again_whatever_its_policy() {
    let asked = |reason: Option<&str>| {
        let mut sandbox = ended(ExitKind::Exited { code: 0 });
        let instance = Arc::make_mut(sandbox.instance.as_mut().unwrap());
        let record = instance.exit.as_mut().unwrap();
        record.reason = reason.map(str::to_owned);
        let spec = spec();
        let restart = Restart { policy: RestartPolicy::Never, ..spec.restart };
        sandbox.spec = Arc::new(Spec { restart, ..spec });
        planned(&sandbox, &GONE).next
    };
    for reason in [StopReason::Drained, StopReason::SpecChanged] {
        assert_eq!(asked(Some(reason.as_str())), Next::Do(Step::Start), "{reason:?}");
    }
    // What ended by itself, or by a limit of its own, has had its turn.
    assert_eq!(asked(None), Next::Settled);
    assert_eq!(asked(Some(StopReason::Timeout.as_str())), Next::Settled);
}

/// One of each field, so that none is forgotten when it is said what it costs.
#[test]
fn each_field_of_what_runs_costs_what_it_says() {
    let cost = |change: &dyn Fn(&mut Spec)| {
        let mut new = spec();
        change(&mut new);
        let change = diff::classify(&spec(), &new, &InUse::default());
        assert_eq!(change.fields.len(), 1, "{change:?}");
        change.fields[0].1.word()
    };
    assert_eq!(cost(&|new| new.image = Some("other".to_owned())), "recreate");
    assert_eq!(cost(&|new| new.isolation = Isolation::Gvisor), "recreate");
    assert_eq!(cost(&|new| new.ephemeral = true), "recreate");
    assert_eq!(cost(&|new| new.command = vec!["other".to_owned()]), "restart");
    assert_eq!(cost(&|new| drop(new.env.insert("A".to_owned(), "b".to_owned()))), "restart");
    assert_eq!(cost(&|new| drop(new.files.insert("a".to_owned(), "b".to_owned()))), "restart");
    assert_eq!(cost(&|new| new.tty = true), "restart");
    assert_eq!(cost(&|new| new.network = Network::Host), "restart");
    assert_eq!(cost(&|new| new.limits.max_files += 1), "restart");
    assert_eq!(cost(&|new| new.limits.output += 1), "restart");
    assert_eq!(cost(&|new| new.strict = true), "live");
    assert_eq!(cost(&|new| new.state = State::Stopped), "live");
    assert_eq!(cost(&|new| new.restart.policy = RestartPolicy::Never), "live");
    assert_eq!(cost(&|new| new.stop.grace = Span::seconds(77)), "live");
    assert_eq!(cost(&|new| new.limits.cpu_percent += 1), "live");
    assert_eq!(cost(&|new| new.limits.max_processes += 1), "live");
    assert_eq!(cost(&|new| new.limits.timeout_seconds += 1), "live");
}
