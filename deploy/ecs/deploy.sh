#!/bin/sh
# Build, push, migrate and roll out on ECS with Fargate: the guide's lines, in an order in which they can be repeated.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
help() {
  cat <<'TEXT'
deploy.sh [--dry-run] [--skip-image] [--help]
Build and push the image, register the task definitions, migrate the database, then create or update the services ssr-api, ssr-worker and ssr-beat.
  --dry-run     print the commands, run none
  --skip-image  the image is in the registry already
Needs: AWS_ACCOUNT, REGION, IMAGE_TAG, TARGET_GROUP_ARN (alb.md), SUBNETS and SECURITY_GROUPS (comma-separated).
May be given: ASSIGN_PUBLIC_IP (ENABLED; DISABLED in private subnets with a NAT gateway), CLUSTER (ssr-cluster).
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
for name in AWS_ACCOUNT REGION IMAGE_TAG TARGET_GROUP_ARN SUBNETS SECURITY_GROUPS; do
  eval "[ -n \"\${$name:-}\" ]" || { echo "deploy.sh: $name is not set; see deploy.sh --help" >&2; exit 2; }
done
cluster=${CLUSTER:-ssr-cluster}
registry=$AWS_ACCOUNT.dkr.ecr.$REGION.amazonaws.com
network="awsvpcConfiguration={subnets=[$SUBNETS],securityGroups=[$SECURITY_GROUPS],assignPublicIp=${ASSIGN_PUBLIC_IP:-ENABLED}}"
export AWS_REGION="$REGION" AWS_DEFAULT_REGION="$REGION" AWS_PAGER=
filled=$(mktemp -d)
trap 'rm -rf "$filled"' EXIT
for file in task-definition task-definition-worker task-definition-beat task-definition-migrate service service-worker service-beat; do
  "$here/fill.sh" "$here/$file.json" > "$filled/$file.json"
done
run() { if [ -n "$dry" ]; then printf '+ %s\n' "$*"; else "$@"; fi; }
quietly() { run "$@" > /dev/null; }
[ -z "$dry" ] || quietly() { run "$@"; }

# 1. the image
if [ -n "$image" ]; then
  there() { [ -z "$dry" ] && aws ecr describe-repositories --repository-names ssr-api > /dev/null 2>&1; }
  there || quietly aws ecr create-repository --repository-name ssr-api --image-scanning-configuration scanOnPush=true
  run docker build -t ssr-api -f "$here/../Dockerfile" "$here/../.."
  run docker tag ssr-api:latest "$registry/ssr-api:$IMAGE_TAG"
  if [ -n "$dry" ]; then echo "+ aws ecr get-login-password | docker login --username AWS --password-stdin $registry"
  else aws ecr get-login-password | docker login --username AWS --password-stdin "$registry"; fi
  run docker push "$registry/ssr-api:$IMAGE_TAG"
fi

# 2. what runs
there() { [ -z "$dry" ] && [ "$("$@" --output text)" = 1 ]; }
there aws ecs describe-clusters --clusters "$cluster" --query "length(clusters[?status=='ACTIVE'])" || quietly aws ecs create-cluster --cluster-name "$cluster" --settings name=containerInsights,value=enabled
for family in ssr-api ssr-worker ssr-beat ssr-migrate; do
  there aws logs describe-log-groups --log-group-name-prefix "/ecs/$family" --query "length(logGroups[?logGroupName=='/ecs/$family'])" || quietly aws logs create-log-group --log-group-name "/ecs/$family"
  quietly aws logs put-retention-policy --log-group-name "/ecs/$family" --retention-in-days 30
  case $family in ssr-api) part="" ;; *) part="-${family#ssr-}" ;; esac
  quietly aws ecs register-task-definition --cli-input-json "file://$filled/task-definition$part.json"
done

# 3. the database, before any new task
if [ -n "$dry" ]; then run aws ecs run-task --cluster "$cluster" --task-definition ssr-migrate --launch-type FARGATE --network-configuration "$network"
else
  task=$(aws ecs run-task --cluster "$cluster" --task-definition ssr-migrate --launch-type FARGATE --network-configuration "$network" --query 'tasks[0].taskArn' --output text)
  case $task in arn:*) ;; *) echo "deploy.sh: the migration was not started: look at 'aws ecs describe-services' and the cluster's capacity" >&2; exit 1 ;; esac
  aws ecs wait tasks-stopped --cluster "$cluster" --tasks "$task"
  code=$(aws ecs describe-tasks --cluster "$cluster" --tasks "$task" --query 'tasks[0].containers[0].exitCode' --output text)
  if [ "$code" != 0 ]; then echo "deploy.sh: the migration ended with exit code $code: read the log group /ecs/ssr-migrate; the services were left as they are" >&2; exit 1; fi
fi

# 4. the services
for name in ssr-api ssr-worker ssr-beat; do
  case $name in ssr-api) part="" ;; *) part="-${name#ssr-}" ;; esac
  if there aws ecs describe-services --cluster "$cluster" --services "$name" --query "length(services[?status=='ACTIVE'])"; then
    quietly aws ecs update-service --cluster "$cluster" --service "$name" --task-definition "$name" --force-new-deployment
  else
    quietly aws ecs create-service --cli-input-json "file://$filled/service$part.json" --cluster "$cluster" --network-configuration "$network"
  fi
done
quietly aws application-autoscaling register-scalable-target --cli-input-json "file://$here/scaling-target.json"
quietly aws application-autoscaling put-scaling-policy --cli-input-json "file://$here/scaling-policy.json"
run aws ecs wait services-stable --cluster "$cluster" --services ssr-api ssr-worker ssr-beat
