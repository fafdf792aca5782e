//! How a group of calls is written for the scheduler.

use scalable_proto::v1;
use v1::input_source::Select;
use v1::parameter::Kind as From;

use crate::arguments::{Kind, Shape, Source};
use crate::options::{Isolation, Options};
use crate::outbox::inputs_of;

/// Cpus of a task that says nothing, thousandths.
const MILLI_CPUS: u64 = 1000;

/// The component of a task that says nothing, as in a manifest.
const COMPONENT: &str = "default";

/// A group that grows and whose results come to its client.
pub(crate) fn group_spec(name: String, function: v1::FunctionCall, shape: Shape, options: &Options) -> v1::GroupSpec {
    let isolation = match options.isolation {
        Isolation::Process => v1::Isolation::Process,
        Isolation::Thread => v1::Isolation::Thread,
    };
    let function = v1::FunctionCall { isolation: isolation.into(), parameters: parameters(shape), ..function };
    let input = |parameter: usize| v1::Input {
        name: format!("argument {}", parameter + 1),
        source: Some(v1::InputSource { select: Some(Select::Element(true)), ..Default::default() }),
        ..Default::default()
    };
    let template = v1::TaskTemplate {
        component: component(options),
        command: Some(v1::task_template::Command::Function(function)),
        inputs: inputs_of(shape).map(input).collect(),
        ..Default::default()
    };
    with_options(v1::GroupSpec { name, template: Some(template), growing: true, deliver: true, ..Default::default() }, options)
}

/// A text without substitutions.
pub(crate) fn literal(text: &str) -> v1::Text {
    v1::Text { pieces: vec![v1::Piece { kind: Some(v1::piece::Kind::Literal(text.to_owned())) }] }
}

/// The component its workers must serve.
pub(crate) fn component(options: &Options) -> String {
    if options.component.is_empty() { COMPONENT.to_owned() } else { options.component.clone() }
}

/// With what the options say of every kind of task.
pub(crate) fn with_options(mut spec: v1::GroupSpec, options: &Options) -> v1::GroupSpec {
    let mut resources = options.resources();
    if resources.milli_cpus == 0 {
        resources.milli_cpus = MILLI_CPUS;
    }
    spec.priority = options.priority;
    spec.max_parallel = options.max_parallel;
    spec.policy = Some(options.policy());
    spec.resources = Some(resources);
    spec
}

/// Where each parameter comes from; those at the end that are values are left out.
fn parameters(shape: Shape) -> Vec<v1::Parameter> {
    let count = inputs_of(shape).last().map_or(0, |last| last + 1);
    let mut input = 0;
    let parameter = |nth| match shape.kind(nth) {
        Kind::Value => v1::Parameter { kind: Some(From::Value(true)) },
        Kind::Handle | Kind::All => {
            input += 1;
            v1::Parameter { kind: Some(From::Input(input - 1)) }
        }
    };
    (0..count).map(parameter).collect()
}

/// Says the sources that are the same for every element: of the parameters whose bit is set in `fixed`, in order.
pub(crate) fn fix(spec: &mut v1::GroupSpec, shape: Shape, fixed: u32, sources: &[Source]) {
    let Some(template) = &mut spec.template else { return };
    let inputs = inputs_of(shape).zip(&mut template.inputs).filter(|(parameter, _)| fixed & (1 << parameter) != 0);
    for ((parameter, input), source) in inputs.zip(sources) {
        let select = match shape.kind(parameter) {
            Kind::All => Select::All(true),
            Kind::Value | Kind::Handle => Select::Index(source.index),
        };
        input.source = Some(v1::InputSource { group: source.group, select: Some(select), ..Default::default() });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_inputs_and_values_are_not() {
        let shape = Shape(0).with(1, Kind::Handle).with(3, Kind::All);
        let mut spec = group_spec("g".to_owned(), v1::FunctionCall::default(), shape, &Options::new());
        fix(&mut spec, shape, 1 << 3, &[Source { session: 1, group: 7, index: 0 }]);
        let template = spec.template.unwrap();
        let Some(v1::task_template::Command::Function(function)) = template.command else { panic!("a function") };
        let kinds: Vec<_> = function.parameters.iter().map(|parameter| parameter.kind.unwrap()).collect();
        assert_eq!(kinds, [From::Value(true), From::Input(0), From::Value(true), From::Input(1)]);
        let sources: Vec<_> = template.inputs.iter().map(|input| input.source.clone().unwrap()).collect();
        assert_eq!(sources[0].select, Some(Select::Element(true)));
        assert_eq!((sources[1].group, sources[1].select.clone()), (7, Some(Select::All(true))));
        assert_eq!(spec.resources.unwrap().milli_cpus, 1000);
    }
}
