#pragma once
#include "hostrunner.h"
#include "hostsequence.h"
