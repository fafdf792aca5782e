//! Cases for parameters, names, projections, commands and keys.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;

use scalable_proto::v1::*;
use scalable_template::*;

fn strings(name: &str, values: &[&str]) -> ParameterAxis {
    let values = Strings { values: values.iter().map(|v| (*v).to_owned()).collect() };
    ParameterAxis { name: name.into(), values: Some(parameter_axis::Values::Strings(values)) }
}

fn range(name: &str, start: i64, step: i64, count: u32) -> ParameterAxis {
    ParameterAxis { name: name.into(), values: Some(parameter_axis::Values::Range(IntRange { start, step, count })) }
}

fn product(axes: Vec<ParameterAxis>) -> ParameterSpace {
    ParameterSpace { kind: Some(parameter_space::Kind::Product(Product { axes })) }
}

fn table(names: &[&str], rows: u32, cells: &[&str]) -> ParameterSpace {
    let own = |all: &[&str]| all.iter().map(|v| (*v).to_owned()).collect();
    ParameterSpace { kind: Some(parameter_space::Kind::Table(Table { names: own(names), rows, cells: own(cells) })) }
}

fn ensemble() -> Space {
    Space::new(&product(vec![strings("scenario", &["rcp26", "rcp45"]), range("member", 0, 1, 50)])).unwrap()
}

#[test]
fn the_last_axis_varies_fastest_and_names_are_readable() {
    let space = ensemble();
    assert_eq!(space.len(), 100);
    assert_eq!(space.names(), ["scenario", "member"]);
    assert_eq!(space.element_name(0), "scenario=rcp26,member=0");
    assert_eq!(space.element_name(57), "scenario=rcp45,member=7");
    assert_eq!(space.task_name("simulate", 57), "simulate[scenario=rcp45,member=7]");
    assert_eq!(space.value(57, "member").unwrap(), "7");
    assert_eq!(space.value(57, "nobody"), None);
    assert_eq!(space.value(100, "member"), None);
    assert!(space.values(100).is_empty());
    assert_eq!(space.axes(), [("scenario", 2, 50), ("member", 50, 1)]);
    assert_eq!(space.column("scenario").unwrap().collect::<Vec<_>>(), ["rcp26", "rcp45"]);
}

#[test]
fn every_element_is_found_by_its_name() {
    let spaces = [
        ensemble(),
        Space::new(&product(vec![range("a", 5, -3, 4), strings("b", &["", "x/y", "a,b=c", "~", "%2F", "."])])).unwrap(),
        Space::new(&table(&["u", "v"], 3, &["1", "2", "1", "2", "3", "4"])).unwrap(),
        Space::new(&product(vec![strings("long", &["é".repeat(300).as_str(), &"é".repeat(301)])])).unwrap(),
        Space::with_length(&ParameterSpace::default(), 3).unwrap(),
        Space::new(&ParameterSpace::default()).unwrap(),
    ];
    for space in spaces {
        let mut seen = HashSet::new();
        for index in 0..space.len() {
            let name = space.element_name(index);
            assert!(name.len() <= ELEMENT_NAME_BYTES_MAX, "{name}");
            assert!(!name.contains(['/', '\0', '\n']) && !name.starts_with('.'), "{name}");
            assert!(seen.insert(name.clone()), "{name} twice");
            let task = space.task_name("g", index);
            let parsed = parse_task_name(&task).unwrap();
            assert_eq!((parsed.run, parsed.group), (None, "g"));
            assert_eq!(space.find_element(&parsed.element), Some(index), "{task}");
        }
    }
}

#[test]
fn hostile_values_stay_one_path_component() {
    let check = |value: &str, name: &str| {
        let space = Space::new(&product(vec![strings("p", &[value])])).unwrap();
        assert_eq!(space.element_name(0), name);
    };
    check("../../etc/passwd", "p=%2E.%2F..%2Fetc%2Fpasswd");
    check("a\0b\nc\u{7f}", "p=a%00b%0Ac%7F");
    check("🌍 warm", "p=🌍 warm");
    check("\u{202e}evil", "p=%E2%80%AEevil");
    check("50%", "p=50%25");
}

#[test]
fn spaces_that_a_peer_could_send_are_refused_not_trusted() {
    let refused = |space: &ParameterSpace| Space::new(space).unwrap_err().to_string();
    assert!(refused(&product(vec![strings("a", &[])])).contains("no values"));
    assert!(refused(&product(vec![ParameterAxis { name: "a".into(), values: None }])).contains("no values"));
    assert!(refused(&product(vec![range("a", 0, 1, 3), range("a", 0, 1, 3)])).contains("named twice"));
    assert!(refused(&product(vec![range("a", i64::MAX, 1, 2)])).contains("leaves 64 bits"));
    assert!(refused(&product(vec![range("a", 0, 0, 2)])).contains("repeats"));
    assert!(refused(&product(vec![range("a", 0, 1, u32::MAX), range("b", 0, 1, u32::MAX)])).contains("134217728"));
    assert!(refused(&product((0..257).map(|n| range(&n.to_string(), 0, 1, 1)).collect())).contains("257 parameters"));
    assert!(refused(&table(&["a", "b"], 2, &["1", "2", "3"])).contains("3 cells"));
    assert!(refused(&table(&[], 2, &[])).contains("0 columns"));
    assert!(refused(&table(&["a"], u32::MAX, &["1"])).contains("134217728"));
    assert!(matches!(
        Space::with_length(&product(vec![range("a", 0, 1, 3)]), 4),
        Err(SpaceError::BadLength { made: 3, said: 4 })
    ));
    assert!(Space::new(&product(vec![range("a", 0, 1, TASKS_MAX)])).is_ok());
}

#[test]
fn names_of_tasks_as_typed() {
    let name = parse_task_name("run-1-x/simulate[scenario=rcp45, member=7]").unwrap();
    assert_eq!((name.run, name.group), (Some("run-1-x"), "simulate"));
    assert_eq!(ensemble().find_element(&name.element), Some(57));
    assert_eq!(parse_task_name("simulate[57]").unwrap().element, Element::Index(57));
    assert_eq!(parse_task_name("simulate").unwrap().element, Element::Whole);
    assert_eq!(ensemble().find_element(&Element::Whole), None);
    assert_eq!(ensemble().find_element(&Element::Index(100)), None);
    for bad in ["", "/g", "a/b/c", "g[1", "g[]", "g[x]", "g[99999999999]", "r/[1]", "g[a=%Z]"] {
        assert!(parse_task_name(bad).is_err(), "{bad}");
    }
    for bad in ["g[member=7]", "g[scenario=rcp45,member=50]", "g[scenario=rcp45,member=x]", "g[scenario=rcp45,memb=7]"] {
        assert_eq!(ensemble().find_element(&parse_task_name(bad).unwrap().element), None, "{bad}");
    }
}

fn projection(axes: &[(u32, u32, u32)]) -> Projection {
    let axis = |&(length, upstream_stride, downstream_stride)| projection::Axis { length, upstream_stride, downstream_stride };
    Projection { axes: axes.iter().map(axis).collect() }
}

#[test]
fn projections_select_upstream_elements_in_index_order() {
    let up = |axes: &[(u32, u32, u32)], down| projection_upstream(&projection(axes), down).unwrap();
    assert_eq!(up(&[(200, 1, 1)], 117), [117]);
    // Fan-in over the members of one scenario, and over the scenarios of one member.
    assert_eq!(up(&[(4, 3, 1), (3, 1, 0)], 2), [6, 7, 8]);
    assert_eq!(up(&[(4, 3, 0), (3, 1, 1)], 2), [2, 5, 8, 11]);
    // Fan-out: the downstream group has an axis more, and another order of axes.
    assert_eq!(up(&[(2, 1, 3), (3, 0, 1)], 4), [1]);
    assert_eq!(up(&[(2, 3, 1), (3, 1, 2)], 3), [4]);
    // Fan-in over two axes around a shared one.
    assert_eq!(up(&[(2, 6, 0), (3, 2, 1), (2, 1, 0)], 1), [2, 3, 8, 9]);
    assert_eq!(up(&[], 5), [0]);
}

#[test]
fn projections_that_a_peer_could_send_are_refused() {
    let refused = |axes: &[(u32, u32, u32)]| Axes::new(&projection(axes)).unwrap_err();
    assert_eq!(refused(&[(0, 1, 1)]), ProjectionError::DeadAxis(0));
    assert_eq!(refused(&[(2, 0, 0)]), ProjectionError::DeadAxis(0));
    assert_eq!(refused(&[(u32::MAX, u32::MAX, 1)]), ProjectionError::TooLarge);
    assert_eq!(refused(&[(u32::MAX, 1, 0), (u32::MAX, 1, 0)]), ProjectionError::TooLarge);
    assert_eq!(refused(&[(1, 1, 1); 513]), ProjectionError::TooManyAxes(513));
}

struct Element1<'a> {
    space: &'a Space,
    index: u32,
    inputs: Vec<(&'a str, Vec<PathBuf>)>,
}

impl Context for Element1<'_> {
    fn input(&self, name: &str) -> Option<Cow<'_, [PathBuf]>> {
        self.inputs.iter().find(|(n, _)| *n == name).map(|(_, paths)| paths.as_slice().into())
    }
    fn input_list(&self, name: &str) -> Option<PathBuf> {
        Some(format!("/lists/{name}").into())
    }
    fn output(&self, name: &str) -> Option<PathBuf> {
        Some(format!("/out/{name}").into())
    }
    fn parameter(&self, name: &str) -> Option<Cow<'_, str>> {
        self.space.value(self.index, name)
    }
    fn builtin(&self, builtin: Builtin) -> Option<OsString> {
        let workdir = PathBuf::from("/work");
        let figures = Builtins {
            run: "run-1",
            group: "g",
            index: self.index,
            attempt: 2,
            task_id: 99,
            milli_cpus: 1500,
            memory_bytes: 512,
            workdir: Some(&workdir),
        };
        figures.get(builtin)
    }
}

fn text(pieces: &[piece::Kind]) -> Text {
    Text { pieces: pieces.iter().map(|kind| Piece { kind: Some(kind.clone()) }).collect() }
}
fn lit(text: &str) -> piece::Kind {
    piece::Kind::Literal(text.into())
}
fn par(name: &str) -> piece::Kind {
    piece::Kind::Parameter(name.into())
}
fn inp(name: &str) -> piece::Kind {
    piece::Kind::Input(name.into())
}

fn argv(args: Vec<Text>) -> TaskTemplate {
    TaskTemplate { command: Some(task_template::Command::Argv(Argv { args })), ..TaskTemplate::default() }
}
fn shell(pieces: &[piece::Kind]) -> TaskTemplate {
    TaskTemplate { command: Some(task_template::Command::Shell(text(pieces))), ..TaskTemplate::default() }
}

#[test]
fn arguments_are_made_from_pieces() {
    let space = ensemble();
    let inputs = vec![("all", vec!["/o/a b".into(), "/o/c".into()]), ("none", vec![])];
    let context = Element1 { space: &space, index: 57, inputs };
    let mut template = argv(vec![
        text(&[lit("run")]),
        text(&[lit("--m="), par("member"), lit("@"), par("scenario")]),
        text(&[inp("all")]),
        text(&[inp("none")]),
        text(&[lit("in="), inp("all")]),
        text(&[lit("no="), inp("none")]),
        text(&[piece::Kind::InputList("all".into())]),
        text(&[piece::Kind::Output("series".into())]),
        text(&[piece::Kind::Builtin(Builtin::Cpus as i32)]),
        text(&[]),
    ]);
    template.env.insert("B".into(), text(&[piece::Kind::Builtin(Builtin::Workdir as i32), lit("/x")]));
    template.env.insert("A".into(), text(&[inp("all")]));
    let made = render(&template, &context).unwrap();
    let expected = ["run", "--m=7@rcp45", "/o/a b", "/o/c", "in=/o/a b /o/c", "no=", "/lists/all", "/out/series", "1.5", ""];
    assert_eq!(made.argv, expected);
    assert_eq!(made.env, [("A".to_owned(), OsString::from("/o/a b /o/c")), ("B".to_owned(), "/work/x".into())]);
}

#[test]
fn commands_that_cannot_be_made_say_why() {
    let space = Space::new(&product(vec![strings("p", &["a\0b"])])).unwrap();
    let context = Element1 { space: &space, index: 0, inputs: vec![("none", vec![])] };
    let refused = |template: &TaskTemplate| render(template, &context).unwrap_err();
    assert_eq!(refused(&TaskTemplate::default()), RenderError::NoCommand);
    assert_eq!(refused(&argv(vec![])), RenderError::NoCommand);
    assert_eq!(refused(&argv(vec![text(&[inp("none")])])), RenderError::NoCommand);
    assert_eq!(refused(&argv(vec![text(&[lit("x")]), text(&[par("p")])])), RenderError::Nul("parameter `p`".into()));
    assert_eq!(refused(&shell(&[lit("echo "), par("p")])), RenderError::Nul("parameter `p`".into()));
    assert!(matches!(refused(&argv(vec![text(&[par("q")])])), RenderError::Unknown { kind: "parameter", .. }));
    assert!(matches!(refused(&argv(vec![text(&[inp("q")])])), RenderError::Unknown { kind: "input", .. }));
    assert!(matches!(refused(&argv(vec![text(&[piece::Kind::Builtin(77)])])), RenderError::Unknown { kind: "builtin", .. }));
    let mut bad = argv(vec![text(&[lit("x")])]);
    bad.env.insert("A=B".into(), text(&[]));
    assert!(matches!(refused(&bad), RenderError::BadEnvName(_)));
}

#[test]
fn hostile_values_come_out_of_a_real_shell_as_they_went_in() {
    let values = [
        "plain",
        "",
        " ",
        "a b",
        "'",
        "''",
        "'; echo broken; '",
        "\"; echo broken; \"",
        "$(echo broken)",
        "`echo broken`",
        "${HOME}",
        "\\",
        "\\'",
        "a\nb",
        "\n",
        "#x",
        "~",
        "*",
        "?",
        "[a]",
        "!",
        "&",
        "|",
        ">x",
        "2",
        "-n",
        "🌍",
        "é",
        "\u{1b}[31m",
        "'\\''",
        "\r",
        "\t",
        "$'x'",
        "{x}",
        "%s",
        "EOF\necho broken",
    ];
    let space = Space::new(&product(vec![strings("p", &values)])).unwrap();
    for (index, value) in values.iter().enumerate() {
        let context = Element1 { space: &space, index: index as u32, inputs: vec![("many", vec![value.into(), "x y".into()])] };
        let run = |pieces: &[piece::Kind]| {
            let made = render(&shell(pieces), &context).unwrap();
            assert_eq!(made.argv.len(), 3);
            let output = std::process::Command::new(&made.argv[0])
                .args(&made.argv[1..])
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .output()
                .unwrap();
            assert!(output.status.success(), "{value:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run(&[lit("printf '<%s>' "), par("p")]), format!("<{value}>"));
        assert_eq!(run(&[lit("printf '<%s>' a"), par("p"), lit("b")]), format!("<a{value}b>"));
        assert_eq!(run(&[lit("printf '<%s>' "), inp("many")]), format!("<{value}><x y>"));
        assert_eq!(run(&[lit("x="), par("p"), lit("; printf '<%s>' \"$x\"")]), format!("<{value}>"));
        assert_eq!(run(&[lit("printf '<%s>' \"$(printf '%s.' "), par("p"), lit(")\"")]), format!("<{value}.>"));
        assert_eq!(
            run(&[lit("cat <<EOF >/dev/null && printf '<%s>' "), par("p"), lit("\nit's \"here\nEOF\n")]),
            format!("<{value}>")
        );
        assert_eq!(run(&[lit("cat <<-'E'\n\tit's\n\tE\n printf '<%s>' "), par("p")]), format!("it's\n<{value}>"));
    }
}

#[test]
fn places_where_a_quoted_word_is_not_a_word_are_refused() {
    let place = |before: &str, after: &str| check_shell(&text(&[lit(before), par("p"), lit(after)])).map_err(|e| e.place);
    for fine in [
        "echo ",
        "echo \"$x\" ",
        "echo 'a' ",
        "echo \\\" ",
        "x=",
        "echo $(cat ",
        "\"$(echo ",
        "( cd x; ",
        "echo $#",
        "echo a#",
        "# note\n",
        "echo $((1 + (2)))",
        "case x in a) echo \"b\";; esac; echo ",
        "cat <<A <<B\n'\nA\n\"\nB\n",
        "echo ${x:-y} ",
        "echo \"a # b\" ",
        "cat <<< ",
        "echo $(echo a)#\" \" ",
        "echo `echo a` ",
        "echo 'a\\' ",
        "echo \"\\\\\" ",
    ] {
        assert_eq!(place(fine, ""), Ok(()), "{fine}");
    }
    for (before, expected) in [
        ("echo '", "inside single quotes"),
        ("echo \"", "inside double quotes"),
        ("echo \"$(echo a)", "inside double quotes"),
        ("echo \"a\\\"", "inside double quotes"),
        ("echo `cat ", "inside backquotes"),
        ("echo ${x:-", "inside `${…}`"),
        ("echo \"${x:-", "inside `${…}`"),
        ("echo $((1 + ", "inside `$((…))`"),
        ("echo $((1 + (2) + ", "inside `$((…))`"),
        ("echo # ", "inside a comment"),
        ("#", "inside a comment"),
        ("cat <<EOF\n", "inside a here-document"),
        ("cat <<", "inside a here-document"),
        ("cat <<-EOF\nEO", "inside a here-document"),
        ("echo \\", "after a backslash"),
        ("echo \"\\", "after a backslash"),
        ("echo $", "after `$`"),
        ("\"$(case x in a) echo ", "after `case` inside `$(…)`"),
        ("echo $'\\'' ", "after `$'`"),
    ] {
        assert_eq!(place(before, ""), Err(expected), "{before}");
    }
    assert!(check_shell(&text(&[lit(&"$(".repeat(10_000)), par("p")])).is_err());
}

#[test]
fn keys_change_with_what_decides_the_result_and_with_nothing_else() {
    let base = || {
        let mut template = argv(vec![text(&[lit("run")]), text(&[par("p")])]);
        template.image = "model:1".into();
        template.env.insert("A".into(), text(&[lit("1")]));
        template.env.insert("B".into(), text(&[lit("2")]));
        template.files.push(FileRef { path: "a.py".into(), digest: vec![1; 32].into(), size: 3, executable: false });
        template
    };
    let values = [("p", Cow::Borrowed("1"))];
    let (one, two) = ([7u8; 32], [8u8; 32]);
    let inputs = [InputDigests { name: "in", digests: &[&one, &two] }];
    let reference = key(&base(), 3, &values, &inputs);
    assert_eq!(key(&base(), 4, &values, &inputs), reference, "the index alone does not matter");
    assert_ne!(key(&base(), 3, &[("p", "2".into())], &inputs), reference);
    assert_ne!(key(&base(), 3, &values, &[InputDigests { name: "in", digests: &[&two, &one] }]), reference);
    assert_ne!(key(&base(), 3, &values, &[]), reference);
    let changes: [fn(&mut TaskTemplate); 9] = [
        |t| t.image.push('x'),
        |t| t.stub = true,
        |t| drop(t.env.remove("A")),
        |t| t.files[0].executable = true,
        |t| t.files[0].digest = vec![2; 32].into(),
        |t| t.stdout = "log".into(),
        |t| t.start_in = StartIn::Work as i32,
        |t| t.outputs.push(Output { name: "o".into(), ..Output::default() }),
        |t| t.success_codes.push(3),
    ];
    for (nth, change) in changes.iter().enumerate() {
        let mut template = base();
        change(&mut template);
        assert_ne!(key(&template, 3, &values, &inputs), reference, "change {nth}");
    }
    let mut other = base();
    other.component = "elsewhere".into();
    assert_eq!(key(&other, 3, &values, &inputs), reference, "where it runs does not matter");
    let mut numbered = base();
    numbered.env.insert("I".into(), text(&[piece::Kind::Builtin(Builtin::Index as i32)]));
    assert_ne!(key(&numbered, 3, &values, &inputs), key(&numbered, 4, &values, &inputs));
    assert_ne!(key(&base(), 3, &[], &inputs), key(&base(), 4, &[], &inputs), "nothing else tells them apart");
    // Pieces do not run together.
    assert_ne!(key(&argv(vec![text(&[lit("ab")])]), 0, &[], &[]), key(&argv(vec![text(&[lit("a"), lit("b")])]), 0, &[], &[]));
}

#[test]
fn a_directory_is_needed_only_when_something_lies_in_it() {
    assert!(!needs_directory(&argv(vec![text(&[lit("true")]), text(&[par("p")])])));
    assert!(needs_directory(&argv(vec![text(&[piece::Kind::Builtin(Builtin::Workdir as i32)])])));
    assert!(needs_directory(&shell(&[lit("x"), piece::Kind::Output("o".into())])));
    let changes: [fn(&mut TaskTemplate); 5] = [
        |t| t.start_in = StartIn::Work as i32,
        |t| t.outputs.push(Output::default()),
        |t| t.inputs.push(Input::default()),
        |t| t.files.push(FileRef::default()),
        |t| t.stdin = Some(InputSource::default()),
    ];
    for change in changes {
        let mut template = argv(vec![text(&[lit("true")])]);
        change(&mut template);
        assert!(needs_directory(&template));
    }
}

#[test]
fn figures_read_well() {
    let figures = [(0, "0"), (1, "0.001"), (500, "0.5"), (1000, "1"), (1250, "1.25")];
    for (milli, expected) in figures {
        assert_eq!(format_cpus(milli), expected);
    }
    assert_eq!(quote_argv(&["python3", "a b.py", "", "x='1'", "--k=v"]), "python3 'a b.py' '' 'x='\\''1'\\''' --k=v");
    assert_eq!(quote_argv(&["A=1"]), "'A=1'");
}
