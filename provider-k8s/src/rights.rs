//! Rights: what whoever starts a run needs in a namespace, what its scheduler needs, how that is checked and asked for.

use futures_util::StreamExt;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::api::{Api, PostParams};
use kube::{Client, Error};

/// Rights on one kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// The API's group; empty is the core.
    pub group: &'static str,
    /// The objects, with the subresource after a `/`.
    pub resource: &'static str,
    /// What may be done with them.
    pub verbs: &'static [&'static str],
    /// Whether it is needed only where the run makes its own service account.
    pub for_account: bool,
}

const fn right(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Right {
    Right { group, resource, verbs, for_account: false }
}

const fn for_account(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Right {
    Right { group, resource, verbs, for_account: true }
}

/// What forwards ports of pods.
const FORWARD: &str = "pods/portforward";

/// What the scheduler needs.
const SCHEDULER: [Right; 4] = [
    right("", "pods", &["create", "get", "list", "watch", "patch", "delete"]),
    right("", "pods/log", &["get"]),
    right("", "events", &["create", "list"]),
    right("batch", "jobs", &["get", "patch"]),
];

/// What whoever starts a run needs: all that the scheduler needs, for nobody can give what they do not have.
const USER: [Right; 9] = [
    right("", "pods", &["create", "get", "list", "watch", "patch", "delete"]),
    right("", "pods/log", &["get"]),
    right("", FORWARD, &["create", "get"]),
    right("", "events", &["create", "list"]),
    right("", "secrets", &["create", "get", "list"]),
    right("", "services", &["create", "get", "list"]),
    right("batch", "jobs", &["create", "get", "list", "patch", "delete"]),
    for_account("", "serviceaccounts", &["create", "list"]),
    for_account("rbac.authorization.k8s.io", "roles,rolebindings", &["create", "list"]),
];

/// Name of the Role of whoever starts runs.
pub const USER_ROLE: &str = "scalable-user";

/// Questions that are asked at once.
const AT_ONCE: usize = 16;

/// Rights that whoever starts a run needs; without those for a service account where the run uses one that exists, and without that to
/// forward ports where the scheduler is reached without.
pub fn needed(own_account: bool, forwards: bool) -> Vec<Right> {
    let wanted = |right: &Right| (own_account || !right.for_account) && (forwards || right.resource != FORWARD);
    USER.into_iter().filter(wanted).collect()
}

/// The rules of the scheduler's Role; `job` is the one Job it may change, nothing: any, for an account that serves several runs.
pub fn scheduler_rules(job: Option<&str>) -> Vec<PolicyRule> {
    let rule = |right: &Right| PolicyRule {
        api_groups: Some(vec![right.group.to_owned()]),
        resources: Some(vec![right.resource.to_owned()]),
        verbs: right.verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        resource_names: job.filter(|_| right.resource == "jobs").map(|job| vec![job.to_owned()]),
        ..PolicyRule::default()
    };
    SCHEDULER.iter().map(rule).collect()
}

/// What gives somebody the Role of [`manifests`], as text for `kubectl apply`.
pub fn binding(namespace: &str, user: &str) -> String {
    // A name may have any characters.
    let user = serde_json::Value::from(user);
    format!(
        "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata:\n  name: {USER_ROLE}\n  namespace: {namespace}\n\
         roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: Role\n  name: {USER_ROLE}\nsubjects:\n\
         - apiGroup: rbac.authorization.k8s.io\n  kind: User\n  name: {user}\n"
    )
}

/// The Role to ask an administrator for, as text for `kubectl apply`: for whoever starts runs, and where `account` is named also the
/// service account of their schedulers with its own Role.
pub fn manifests(namespace: &str, account: Option<&str>) -> String {
    let mut text = role(USER_ROLE, namespace, &needed(account.is_none(), true));
    if let Some(account) = account {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {account}\n  namespace: {namespace}\n---\n"
        ));
        text.push_str(&role(account, namespace, &SCHEDULER));
        text.push_str(&format!(
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata:\n  name: {account}\n  namespace: {namespace}\n\
             roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: Role\n  name: {account}\nsubjects:\n- kind: ServiceAccount\n  \
             name: {account}\n  namespace: {namespace}\n"
        ));
    }
    text
}

fn role(name: &str, namespace: &str, rights: &[Right]) -> String {
    let mut text = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: {name}\n  namespace: {namespace}\nrules:\n"
    );
    for right in rights {
        let resources: Vec<_> = right.resource.split(',').collect();
        text.push_str(&format!(
            "- apiGroups: [\"{}\"]\n  resources: [{}]\n  verbs: [{}]\n",
            right.group,
            resources.join(", "),
            right.verbs.join(", ")
        ));
    }
    text
}

/// A right that is missing, in words: `create pods`.
pub type Missing = String;

/// Asks the API which of these rights are missing in the namespace.
///
/// # Errors
/// When it cannot be asked.
pub async fn missing(client: &Client, namespace: &str, rights: &[Right]) -> Result<Vec<Missing>, Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut questions = Vec::new();
    for right in rights {
        for resource in right.resource.split(',') {
            let (resource, subresource) = resource.split_once('/').map_or((resource, None), |(r, s)| (r, Some(s)));
            for verb in right.verbs {
                questions.push(ResourceAttributes {
                    group: Some(right.group.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource: subresource.map(str::to_owned),
                    verb: Some((*verb).to_owned()),
                    namespace: Some(namespace.to_owned()),
                    ..ResourceAttributes::default()
                });
            }
        }
    }
    let ask = |attributes: ResourceAttributes| {
        let reviews = reviews.clone();
        async move {
            let sub = attributes.subresource.as_ref().map(|sub| format!("/{sub}")).unwrap_or_default();
            let words = format!(
                "{} {}{sub}",
                attributes.verb.clone().unwrap_or_default(),
                attributes.resource.clone().unwrap_or_default()
            );
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            Ok::<_, Error>((!answer.status.is_some_and(|status| status.allowed)).then_some(words))
        }
    };
    let answers: Vec<_> = futures_util::stream::iter(questions.into_iter().map(ask)).buffered(AT_ONCE).collect().await;
    answers.into_iter().filter_map(Result::transpose).collect()
}
