//! Directories, inputs, outputs.

use std::os::unix::fs::MetadataExt;

use scalable_proto::v1::*;

use crate::fake::*;

/// A group that makes one file output `table` with this content.
fn table(content: &str) -> TaskTemplate {
    let mut template = shell(&format!("printf '%s' '{content}' > {{o:table}}"));
    template.outputs = vec![output("table", OutputKind::File, "")];
    template
}

#[tokio::test]
async fn an_output_is_published_read_only_with_its_digest() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[("prepare", table("1,2,3"), plain())]);
    let report = fake.execute(1, 0).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    let out = &report.outputs[0];
    assert_eq!((out.name.as_str(), out.written, out.size), ("table", true, 5));
    assert_eq!(&out.digest[..], blake3::hash(b"1,2,3").as_bytes());
    assert_eq!(fake.read("objects/prepare/0/1/table"), "1,2,3");
    let metadata = std::fs::metadata(fake.run().join("objects/prepare/0/1/table")).expect("there");
    assert_eq!((metadata.mode() & 0o777, metadata.nlink()), (0o444, 1));
    assert!(files_below(&fake.run().join("attempts")).len() <= 1, "the attempt's directory is gone");
}

#[tokio::test]
async fn inputs_are_the_attempt_s_own_under_the_names_it_wants() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut simulate = shell(
        "cat data/in/table.csv; cat {i:plain}; echo; test \"$SCALABLE_WORKDIR\" = {w} && pwd -P; cp data/in/table.csv out/x/series.csv",
    );
    simulate.inputs = vec![input("table", 0, "table", "data/in/table.csv"), input("plain", 0, "table", "")];
    simulate.outputs = vec![output("series", OutputKind::File, "out/x/series.csv")];
    simulate.start_in = StartIn::Work as i32;
    let mut reader = argv(&["cat", "-"]);
    reader.stdin = input("", 0, "table", "").source;
    reader.stdout = "copy".into();
    reader.outputs = vec![output("copy", OutputKind::File, "")];
    fake.announce(&[("prepare", table("abc"), plain()), ("simulate", simulate, plain()), ("reader", reader, plain())]);
    let object = Fake::object(0, &fake.execute(1, 0).await, 0);
    let report = fake.execute_with(2, 0, &[vec![object.clone()], vec![object.clone()]]).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    let log = fake.read("logs/simulate/0.1.stdout");
    assert!(log.starts_with("abcabc\n") && log.trim_end().ends_with("attempts/simulate/0/1/work"), "{log}");
    assert_eq!(fake.read("objects/simulate/0/1/series"), "abc");
    let report = fake.execute_with(3, 0, &[vec![object]]).await;
    assert_eq!((report.class(), report.stdout_bytes), (OutcomeClass::Succeeded, 0), "{report:?}");
    assert_eq!(fake.read("objects/reader/0/1/copy"), "abc");
    assert!(!fake.exists("logs/reader"), "the stream is the output");
}

#[tokio::test]
async fn a_fan_in_comes_in_index_order_and_as_a_list() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut each = shell("echo $SCALABLE_INDEX > {o:table}");
    each.outputs = vec![output("table", OutputKind::File, "")];
    let mut all = shell("cat {i:all}; while read -r path; do cat \"$path\"; done < {l:all}");
    let mut source = input("all", 0, "table", "");
    source.source.as_mut().expect("has one").select = Some(input_source::Select::All(true));
    all.inputs = vec![source];
    let mut none = argv(&["echo", "{i:all}", "{i:all}", "end"]);
    none.inputs = all.inputs.clone();
    none.inputs[0].source.as_mut().expect("has one").optional = true;
    fake.announce(&[("each", each, plain()), ("all", all, plain()), ("none", none, plain())]);
    let mut objects = Vec::new();
    for index in 0..12 {
        objects.push(Fake::object(index, &fake.execute(1, index).await, 0));
    }
    let report = fake.execute_with(2, 0, &[objects]).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    let expected: String = (0..12).chain(0..12).map(|n| format!("{n}\n")).collect();
    assert_eq!(fake.read("logs/all/0.1.stdout"), expected);
    let unwritten = ObjectRef::default();
    let report = fake.execute_with(3, 0, &[vec![unwritten]]).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    assert_eq!(fake.read("logs/none/0.1.stdout"), "end\n", "no argument at all");
}

#[tokio::test]
async fn a_missing_output_says_what_was_there() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut wrong = shell("mkdir -p out; touch out/serie.csv notes.txt");
    wrong.outputs = vec![output("series", OutputKind::File, "out/series.csv")];
    wrong.start_in = StartIn::Work as i32;
    let mut nothing = shell(": {o:series}");
    nothing.outputs = vec![output("series", OutputKind::File, "")];
    let mut optional = nothing.clone();
    optional.outputs[0].optional = true;
    let mut list = shell("touch out/a.txt");
    list.outputs = vec![output("all", OutputKind::List, "out/*.nc")];
    list.start_in = StartIn::Work as i32;
    fake.announce(&[
        ("wrong", wrong, plain()),
        ("nothing", nothing, plain()),
        ("optional", optional, plain()),
        ("list", list, plain()),
    ]);
    let report = fake.execute(1, 0).await;
    assert_eq!((report.class(), report.exit_code), (OutcomeClass::MissingOutput, Some(0)));
    let expected =
        "the command ended well but did not write output `series` (out/series.csv); what is there: notes.txt, out/serie.csv";
    assert_eq!(report.message, expected);
    assert_eq!(report.kept_directory, "failed/wrong/0.1");
    assert!(fake.exists("failed/wrong/0.1/work/notes.txt") && !fake.exists("objects/wrong/0/1"));
    assert!(report.rerun.contains("/failed/wrong/0.1/work && "), "{}", report.rerun);
    let report = fake.execute(2, 0).await;
    assert!(report.message.ends_with("it wrote no file"), "{}", report.message);
    let report = fake.execute(3, 0).await;
    assert_eq!((report.class(), report.outputs[0].written), (OutcomeClass::Succeeded, false));
    let report = fake.execute(4, 0).await;
    assert!(
        report.message.starts_with("nothing matches output `all` (out/*.nc); what is there: out/a.txt"),
        "{}",
        report.message
    );
}

#[tokio::test]
async fn directories_lists_and_overlapping_outputs() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut make = shell(
        "for n in b a c; do echo $n > out/$n.nc; done; mkdir out/sub; echo s > out/sub/s.txt; chmod +x out/sub/s.txt; echo no > out/x.txt",
    );
    make.outputs = vec![
        output("whole", OutputKind::Dir, "out"),
        output("all", OutputKind::List, "out/*.nc"),
        output("one", OutputKind::File, "out/a.nc"),
    ];
    make.start_in = StartIn::Work as i32;
    let mut take = shell(
        "cat {i:all}; for p in {i:all}; do basename $p; done; find {i:whole} -type f | sed 's,.*/whole,,' | sort; test -x {i:whole}/sub/s.txt && echo executable",
    );
    take.inputs = vec![input("all", 0, "all", ""), input("whole", 0, "whole", "")];
    fake.announce(&[("make", make, plain()), ("take", take, plain())]);
    let report = fake.execute(1, 0).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    assert_eq!(report.outputs.iter().map(|o| o.size).collect::<Vec<_>>(), [11, 6, 2]);
    let there = files_below(&fake.run().join("objects/make/0/1"));
    let expected = [
        ".all.list",
        "all",
        "all/a.nc",
        "all/b.nc",
        "all/c.nc",
        "one",
        "whole",
        "whole/a.nc",
        "whole/b.nc",
        "whole/c.nc",
        "whole/sub",
        "whole/sub/s.txt",
        "whole/x.txt",
    ];
    assert_eq!(there, expected);
    let objects = [1, 0].map(|output| vec![Fake::object(0, &report, output)]);
    let report = fake.execute_with(2, 0, &objects).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    assert_eq!(
        fake.read("logs/take/0.1.stdout"),
        "a\nb\nc\na.nc\nb.nc\nc.nc\n/a.nc\n/b.nc\n/c.nc\n/sub/s.txt\n/x.txt\nexecutable\n"
    );
}

#[tokio::test]
async fn links_are_content_or_refused() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let make = |script: &str, kind| {
        let mut template = shell(script);
        template.inputs = vec![input("table", 0, "table", "")];
        template.outputs = vec![output("o", kind, "")];
        template
    };
    std::fs::write(fake.base().join("outside"), "secret").expect("written");
    let outside = fake.base().join("outside").display().to_string();
    let groups = [
        ("prepare", table("from the input"), plain()),
        ("inside", make("echo x > real; ln -s $PWD/real {o:o}", OutputKind::File), plain()),
        ("input", make("ln -s {i:table} {o:o}", OutputKind::File), plain()),
        ("escape", make("ln -s /etc/hostname {o:o}", OutputKind::File), plain()),
        ("through", make("d=$(dirname {o:o}); rmdir $d && ln -s /etc $d", OutputKind::File), plain()),
        ("dangling", make("ln -s nowhere {o:o}", OutputKind::File), plain()),
        ("tree", make("mkdir {o:o}; ln -s /etc/hostname {o:o}/x", OutputKind::Dir), plain()),
        ("loop", make("mkdir {o:o}; ln -s .. {o:o}/x", OutputKind::Dir), plain()),
        ("hard", make(&format!("ln {outside} {{o:o}}"), OutputKind::File), plain()),
        ("pipe", make("mkfifo {o:o}", OutputKind::File), plain()),
        ("type", make("mkdir {o:o}", OutputKind::File), plain()),
        ("file", make("touch {o:o}", OutputKind::Dir), plain()),
    ];
    let mut groups = groups;
    groups[1].1.start_in = StartIn::Work as i32;
    fake.announce(&groups);
    let object = Fake::object(0, &fake.execute(1, 0).await, 0);
    let expected = [
        (2, OutcomeClass::Succeeded, "x\n"),
        (3, OutcomeClass::Succeeded, "from the input"),
        (4, OutcomeClass::BadOutput, "outside the attempt's directory and its inputs"),
        (5, OutcomeClass::MissingOutput, "did not write output"),
        (6, OutcomeClass::BadOutput, "is a link to nowhere, which is not there"),
        (7, OutcomeClass::BadOutput, "outside the attempt's directory and its inputs"),
        (8, OutcomeClass::BadOutput, "is there a link to a directory above?"),
        (9, OutcomeClass::Succeeded, "secret"),
        (10, OutcomeClass::BadOutput, "is a named pipe and must be a file"),
        (11, OutcomeClass::BadOutput, "is a directory and must be a file"),
        (12, OutcomeClass::BadOutput, "is a file and must be a directory"),
    ];
    for (group, class, words) in expected {
        let report = fake.execute_with(group, 0, &[vec![object.clone()]]).await;
        assert_eq!(report.class(), class, "{group}: {report:?}");
        let name = groups[group as usize - 1].0;
        if class == OutcomeClass::Succeeded {
            assert_eq!(fake.read(&format!("objects/{name}/0/1/o")), words, "{name}");
            let published = fake.run().join(format!("objects/{name}/0/1/o"));
            assert!(std::fs::symlink_metadata(published).expect("there").is_file(), "content, not a link");
        } else {
            assert!(report.message.contains(words), "{name}: {}", report.message);
            assert!(!fake.exists(&format!("objects/{name}/0/1")), "{name}");
        }
    }
    let outside = std::fs::metadata(fake.base().join("outside")).expect("there");
    assert_ne!(outside.mode() & 0o222, 0, "a file that was linked from outside keeps its permissions");
}

#[tokio::test]
async fn a_task_that_changes_its_input_fails_and_nobody_else_sees_it() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let with = |script: &str| {
        let mut template = shell(script);
        template.inputs = vec![input("table", 0, "table", "data.csv")];
        template.start_in = StartIn::Work as i32;
        template
    };
    fake.announce(&[
        ("prepare", table("original"), plain()),
        ("append", with("chmod u+w data.csv; echo more >> data.csv"), plain()),
        ("replace", with("echo other > new; mv -f new data.csv"), plain()),
        ("same size", with("chmod u+w data.csv; printf 'ORIGINAL' > data.csv; touch -d 2001-01-01 data.csv"), plain()),
        ("touch", with("touch data.csv"), plain()),
        ("remove", with("rm -f data.csv"), plain()),
        ("reader", with("cat data.csv"), plain()),
    ]);
    let object = Fake::object(0, &fake.execute(1, 0).await, 0);
    for group in [2, 3, 4] {
        let report = fake.execute_with(group, 0, &[vec![object.clone()]]).await;
        assert_eq!(report.class(), OutcomeClass::InputChanged, "{group}: {report:?}");
        assert!(report.message.contains("changed its input `table`"), "{}", report.message);
    }
    for group in [5, 6, 7] {
        let report = fake.execute_with(group, 0, &[vec![object.clone()]]).await;
        assert_eq!(report.class(), OutcomeClass::Succeeded, "{group}: {report:?}");
    }
    assert_eq!(fake.read("logs/reader/0.1.stdout"), "original");
    assert_eq!(fake.read("objects/prepare/0/1/table"), "original");
}

#[tokio::test]
async fn a_large_input_cannot_be_written_and_is_watched_like_a_small_one() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut large = shell("head -c 8388608 /dev/zero > {o:table}");
    large.outputs = vec![output("table", OutputKind::File, "")];
    let with = |script: &str| {
        let mut template = shell(script);
        template.inputs = vec![input("table", 0, "table", "data")];
        template.start_in = StartIn::Work as i32;
        template
    };
    fake.announce(&[
        ("large", large, plain()),
        ("reader", with("wc -c < data; stat -c %a data"), plain()),
        ("plain write", with("(printf x >> data) 2>/dev/null; true"), plain()),
        ("forced write", with("chmod u+w data; printf x >> data"), plain()),
    ]);
    let object = Fake::object(0, &fake.execute(1, 0).await, 0);
    let report = fake.execute_with(2, 0, &[vec![object.clone()]]).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    assert_eq!(fake.read("logs/reader/0.1.stdout"), "8388608\n444\n");
    let root = nix::unistd::geteuid().is_root();
    let report = fake.execute_with(3, 0, &[vec![object.clone()]]).await;
    // Permissions do not bind root: what it has is a copy.
    assert_eq!(report.class(), if root { OutcomeClass::InputChanged } else { OutcomeClass::Succeeded }, "{report:?}");
    let original = std::fs::metadata(fake.run().join("objects/large/0/1/table")).expect("there");
    assert_eq!(original.len(), 8 << 20);
    let report = fake.execute_with(4, 0, &[vec![object.clone()]]).await;
    assert_eq!(report.class(), OutcomeClass::InputChanged, "{report:?}");
    let original = std::fs::metadata(fake.run().join("objects/large/0/1/table")).expect("there");
    assert_eq!(original.len(), 8 << 20, "nobody else's copy has changed");
}

#[tokio::test]
async fn files_beside_the_manifest_lie_at_their_paths() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let content = b"#!/bin/sh\necho from the script $1\n";
    let digest = blake3::hash(content).as_bytes().to_vec();
    std::fs::create_dir_all(fake.run().join("files")).expect("made");
    std::fs::write(fake.run().join("files").join(blake3::hash(content).to_hex().as_str()), content).expect("written");
    let mut template = shell("./bin/tool x; cat lib/data; ls -l lib/data bin/tool | cut -c1-10");
    let file = |path: &str, executable| FileRef {
        path: path.into(),
        digest: digest.clone().into(),
        size: content.len() as u64,
        executable,
    };
    template.files = vec![file("bin/tool", true), file("lib/data", false)];
    template.start_in = StartIn::Work as i32;
    let mut evil = template.clone();
    evil.files[0].path = "../../escape".into();
    let mut gone = template.clone();
    gone.files[0].digest = vec![1; 32].into();
    fake.announce(&[("good", template, plain()), ("evil", evil, plain()), ("gone", gone, plain())]);
    let report = fake.execute(1, 0).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    let expected = format!("from the script x\n{}-r-xr-xr-x\n-r--r--r--\n", String::from_utf8_lossy(content));
    assert_eq!(fake.read("logs/good/0.1.stdout"), expected);
    let report = fake.execute(2, 0).await;
    assert_eq!(report.class(), OutcomeClass::InfraStart);
    assert!(report.message.contains("it leaves the attempt's directory"), "{}", report.message);
    let report = fake.execute(3, 0).await;
    assert!(report.message.contains("cannot put `bin/tool` there"), "{}", report.message);
}

#[tokio::test]
async fn hostile_names_are_only_names() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let names = ["a b", "new\nline", "-rf", "ü🌍", "$(touch evil)", "'; touch evil; '", "*"];
    let mut groups = Vec::new();
    for name in names {
        let mut template = shell(&format!("echo content > {{o:{name}}}"));
        template.outputs = vec![output(name, OutputKind::File, "")];
        groups.push((name, template, plain()));
    }
    for name in ["../x", "a/b", "", &"y".repeat(300)] {
        let mut template = shell("true");
        template.outputs = vec![output(name, OutputKind::File, "")];
        groups.push(("g", template, plain()));
    }
    let paths = ["../x", "/etc/passwd", "a/../../x"];
    for path in paths {
        let mut template = shell("true");
        template.outputs = vec![output("o", OutputKind::File, path)];
        groups.push(("g", template, plain()));
    }
    fake.announce(&groups);
    for (n, name) in names.iter().enumerate() {
        let report = fake.execute(n as u32 + 1, 0).await;
        assert_eq!(report.class(), OutcomeClass::Succeeded, "{name}: {report:?}");
        assert_eq!(fake.read(&format!("objects/{name}/0/1/{name}")), "content\n");
    }
    for group in names.len()..groups.len() {
        let report = fake.execute(group as u32 + 1, 0).await;
        assert_eq!(report.class(), OutcomeClass::InfraStart, "{report:?}");
        assert!(report.message.contains("cannot be part of a path"), "{}", report.message);
    }
    assert!(!fake.base().join("evil").exists());
}

#[tokio::test]
async fn a_stub_touches_its_outputs_and_executes_nothing() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut stub = shell("touch executed");
    stub.stub = true;
    let mut with_outputs = stub.clone();
    with_outputs.outputs = vec![
        output("file", OutputKind::File, "a/b.csv"),
        output("dir", OutputKind::Dir, ""),
        output("list", OutputKind::List, "out/*.nc"),
        output("bare", OutputKind::List, ""),
    ];
    with_outputs.outputs[3].optional = true;
    fake.announce(&[("none", stub, plain()), ("some", with_outputs, plain())]);
    assert_eq!(fake.execute(1, 0).await.class(), OutcomeClass::Succeeded);
    let report = fake.execute(2, 0).await;
    assert_eq!(report.class(), OutcomeClass::Succeeded, "{report:?}");
    assert_eq!(report.outputs.iter().map(|o| o.written).collect::<Vec<_>>(), [true, true, true, false]);
    assert!(fake.exists("objects/some/0/1/file") && fake.exists("objects/some/0/1/list/stub.nc"));
    assert!(!fake.base().join("executed").exists());
}

#[tokio::test]
async fn directories_of_failures_are_kept_up_to_the_bound() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    let mut fails = shell("echo x > mine; exit 1");
    fails.start_in = StartIn::Work as i32;
    let groups = [("fails", fails, plain())];
    let run = AnnounceRun { keep_failed: 3, ..fake.run_announcement(&groups) };
    fake.announce_run(run, &groups);
    let mut kept = 0;
    for index in 0..6 {
        let report = fake.execute(1, index).await;
        assert_eq!(report.class(), OutcomeClass::AppError);
        if !report.kept_directory.is_empty() {
            kept += 1;
            assert_eq!(fake.read(&format!("{}/work/mine", report.kept_directory)), "x\n");
        }
    }
    assert_eq!(kept, 3);
    assert_eq!(std::fs::read_dir(fake.run().join("failed/fails")).expect("there").count(), 3);
    assert!(files_below(&fake.run().join("attempts")).len() <= 1);
}

#[tokio::test]
async fn outputs_of_an_earlier_run_are_taken_over_by_key() {
    let mut fake = Fake::start().await;
    let _worker = fake.ready(&[]).await;
    fake.announce(&[("prepare", table("1"), plain())]);
    let first = fake.execute(1, 0).await;
    assert_eq!(first.class(), OutcomeClass::Succeeded, "{first:?}");
    // What the scheduler leaves behind of a run.
    let earlier = fake.base().join("run-earlier");
    std::fs::create_dir_all(earlier.join("outputs/prepare")).expect("made");
    std::fs::hard_link(fake.run().join("objects/prepare/0/1/table"), earlier.join("outputs/prepare/table")).expect("linked");
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let line = format!(
        "not json\n{{\"state\":\"succeeded\",\"key\":\"{}\",\"outputs\":{{\"table\":{{\"path\":\"outputs/prepare/table\",\"digest\":\"{}\",\"size\":1,\"kept\":true}}}}}}\n",
        hex(&first.key),
        hex(&first.outputs[0].digest)
    );
    std::fs::write(earlier.join("tasks.jsonl"), line).expect("written");
    let groups = [("prepare", table("1"), plain()), ("changed", table("2"), plain())];
    let run = AnnounceRun { takes_over: earlier.display().to_string(), run: 1, ..fake.run_announcement(&groups) };
    fake.announce_run(run, &groups);
    let taken = fake.execute(1, 0).await;
    assert_eq!((taken.class(), taken.taken_over_from.as_str()), (OutcomeClass::Succeeded, "run-earlier"), "{taken:?}");
    assert_eq!((&taken.outputs, &taken.key), (&first.outputs, &first.key));
    assert_eq!(fake.read("objects/prepare/0/1/table"), "1");
    let executed = fake.execute(2, 0).await;
    assert_eq!((executed.class(), executed.taken_over_from.as_str()), (OutcomeClass::Succeeded, ""));
    // Somebody wrote over the earlier output: it is not what was recorded any more.
    std::fs::remove_file(earlier.join("outputs/prepare/table")).expect("removed");
    std::fs::write(earlier.join("outputs/prepare/table"), "9").expect("written");
    let executed = fake.execute(1, 0).await;
    assert_eq!((executed.class(), executed.taken_over_from.as_str()), (OutcomeClass::Succeeded, ""));
}
