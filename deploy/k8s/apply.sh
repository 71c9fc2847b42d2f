#!/bin/sh
# Bring an overlay to a cluster in the right order: namespace and settings, migrations, then everything else.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
help() {
  cat <<'TEXT'
apply.sh [--dry-run] [--help] [OVERLAY]
Apply deploy/kustomize/OVERLAY (production): first the namespace, settings, accounts and policies, then the job ssr-migrate, and when that has ended well everything else; wait for the rollouts.
  --dry-run  print what would be applied in which order
The secret ssr-secrets must be in the namespace: README.md says how it comes there.
Exit codes: 0 all rolled out, 1 a step failed (nothing after it was done), 2 wrong use.
TEXT
}
dry='' overlay=production
for option; do
  case $option in
    --help) help; exit 0 ;;
    --dry-run) dry=yes ;;
    -*) help >&2; exit 2 ;;
    *) overlay=$option ;;
  esac
done
folder=$here/../kustomize/$overlay
[ -f "$folder/kustomization.yaml" ] || { echo "apply.sh: there is no overlay $overlay: choose production or staging" >&2; exit 2; }
rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
kubectl kustomize "$folder" > "$rendered"
namespace=$(awk '/^kind: Namespace$/ {found = 1} found && /^  name:/ {print $2; exit} /^---$/ {found = 0}' "$rendered")
run() { if [ -n "$dry" ]; then printf '+ %s\n' "$*"; else "$@"; fi; }

run kubectl apply -f "$rendered" -l step=first
[ -n "$dry" ] || kubectl get secret ssr-secrets -n "$namespace" > /dev/null || { echo "apply.sh: the secret ssr-secrets is not in the namespace $namespace: see deploy/k8s/README.md" >&2; exit 1; }
run kubectl delete job ssr-migrate -n "$namespace" --ignore-not-found
run kubectl apply -f "$rendered" -l step=migration
if ! run kubectl wait job/ssr-migrate -n "$namespace" --for=condition=complete --timeout=1800s; then
  kubectl logs job/ssr-migrate -n "$namespace" --tail=20 >&2 || true
  echo "apply.sh: the migration did not end well; everything else was left as it is" >&2; exit 1
fi
run kubectl apply -f "$rendered"
for name in ssr-api-stable celery-worker celery-beat flower; do run kubectl rollout status "deployment/$name" -n "$namespace" --timeout=900s; done
