//! Both tables, whole: every state, every event, where it leads or that it is refused.

use super::super::task_table::{TaskEvent, TaskState, TaskVerdict, task_next};
use super::super::worker_table::{SessionEvent, SessionVerdict, WORKER_STATES, session_next};
use std::fmt::Write;

#[test]
fn the_task_table() {
    let mut table = String::new();
    for state in TaskState::ALL {
        for event in TaskEvent::ALL {
            let verdict = match task_next(state, event) {
                TaskVerdict::To(next) => format!("-> {next:?}"),
                TaskVerdict::Refused => "refused".to_owned(),
                TaskVerdict::Never => "never".to_owned(),
            };
            let _ = writeln!(table, "{state:?} + {event:?} {verdict}");
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn the_session_table() {
    let mut table = String::new();
    for state in WORKER_STATES {
        for event in SessionEvent::ALL {
            let verdict = match session_next(state, event) {
                SessionVerdict::To(next) => format!("-> {next:?}"),
                SessionVerdict::Refused => "refused".to_owned(),
                SessionVerdict::Never => "never".to_owned(),
            };
            let _ = writeln!(table, "{state:?} + {event:?} {verdict}");
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn only_a_result_that_was_lost_leaves_a_state_that_is_over() {
    for state in TaskState::ALL.into_iter().filter(|state| state.is_over()) {
        for event in TaskEvent::ALL {
            let lost = (state, event) == (TaskState::Succeeded, TaskEvent::LoseResult);
            assert_eq!(matches!(task_next(state, event), TaskVerdict::To(_)), lost, "{state:?} + {event:?}");
        }
    }
}
