#!/bin/sh
# Build, migrate and roll out on Cloud Run: the guide's two lines, with the workers, beat and migrations that it left out.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
help() {
  cat <<'TEXT'
deploy.sh [--dry-run] [--skip-image] [--help]
Build the image with Cloud Build, migrate the database, then replace the service ssr-api and the worker pools celery-worker and celery-beat.
  --dry-run     print the commands, run none
  --skip-image  the image is in the registry already
Needs: PROJECT_ID, IMAGE_TAG. May be given: REGION (us-central1), WORKERS (4).
Exit codes: 0 all done, 1 a step failed (nothing after it was done), 2 wrong use.
TEXT
}
dry='' image=yes
for option; do
  case $option in
    --help) help; exit 0 ;;
    --dry-run) dry=yes ;;
    --skip-image) image= ;;
    *) help >&2; exit 2 ;;
  esac
done
for name in PROJECT_ID IMAGE_TAG; do
  eval "[ -n \"\${$name:-}\" ]" || { echo "deploy.sh: $name is not set; see deploy.sh --help" >&2; exit 2; }
done
region=${REGION:-us-central1}
filled=$(mktemp -d)
trap 'rm -rf "$filled"' EXIT
for file in service worker-pool beat-pool migrate-job; do
  sed -e "s|\${PROJECT_ID}|$PROJECT_ID|g" -e "s|\${IMAGE_TAG}|$IMAGE_TAG|g" "$here/$file.yaml" > "$filled/$file.yaml"
done
run() { if [ -n "$dry" ]; then printf '+ %s\n' "$*"; else "$@"; fi; }
in_region() { run gcloud run "$@" --region "$region" --project "$PROJECT_ID"; }

if [ -n "$image" ]; then run gcloud builds submit "$here/../.." --config "$here/cloudbuild.yaml" --substitutions "_IMAGE_TAG=$IMAGE_TAG" --project "$PROJECT_ID"; fi
in_region jobs replace "$filled/migrate-job.yaml"
in_region jobs execute ssr-migrate --wait
in_region services replace "$filled/service.yaml"
in_region worker-pools replace "$filled/worker-pool.yaml"
in_region worker-pools replace "$filled/beat-pool.yaml"
in_region worker-pools update celery-worker --instances "${WORKERS:-4}"
in_region worker-pools update celery-beat --instances 1
